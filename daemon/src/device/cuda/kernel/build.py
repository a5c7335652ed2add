#!/usr/bin/env python3
"""Compiles move.cu to move.ptx with NVRTC: build.py LIBNVRTC [PTXAS]

LIBNVRTC is libnvrtc.so.12 of CUDA 12.0 (`pip download --no-deps nvidia-cuda-nvrtc-cu12==12.0.140` has it; no GPU is needed):
a newer one writes PTX that the oldest supported driver does not read. With PTXAS (`nvidia-cuda-nvcc-cu12`) the result is
assembled for the architectures below, to see that it can be.
"""

import ctypes
import hashlib
import pathlib
import subprocess
import sys

ARCHITECTURES = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]

here = pathlib.Path(__file__).parent
source = (here / "move.cu").read_bytes()
nvrtc = ctypes.CDLL(sys.argv[1])
program = ctypes.c_void_p()


def check(code: int) -> None:
    if code != 0:
        raise SystemExit(f"NVRTC: error {code}\n{text('ProgramLog')}")


def text(what: str) -> str:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.value.decode()


check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"move.cu", 0, None, None))
flags = [b"--gpu-architecture=compute_70", b"--std=c++17"]
check(nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags)))
# NVRTC's own constants, which nothing here refers to.
lines = [line.rstrip() for line in text("PTX").splitlines() if "nv6target" not in line]
ptx = "\n".join(lines).strip()
# A test compares the digests: a changed source with the old PTX, and PTX that was changed by hand, are noticed.
digests = [hashlib.sha256(part).hexdigest() for part in (source, f"{ptx}\n".encode())]
head = f"// Built by build.py from move.cu, sha256 {digests[0]}.\n// What follows has sha256 {digests[1]}.\n"
(here / "move.ptx").write_text(f"{head}{ptx}\n")
for architecture in ARCHITECTURES if len(sys.argv) > 2 else []:
    command = [sys.argv[2], f"--gpu-name={architecture}", "--warning-as-error", "--verbose", "--output-file=/dev/null", here / "move.ptx"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    print(architecture, "assembled" if ran.returncode == 0 else "FAILED", ran.stderr.strip().splitlines()[-1])
    if ran.returncode != 0:
        raise SystemExit(ran.stderr)
