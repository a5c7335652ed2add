"""A recording made while a real vLLM worked: LMCache's own tools and this project's must take it, and agree with it."""

import json
import pathlib
import subprocess
import typing

from report import Report

# Of both replays: what the recording daemon had.
POOL = ["--l1-size-gb", "2", "--eviction-policy", "LRU"]


def run_all(report: Report, recording: pathlib.Path, venv: pathlib.Path, lmcached: str, work: pathlib.Path) -> None:
    """Reads and replays `recording`, whose daemon has ended."""
    lmcache = [str(venv / "bin" / "lmcache"), "trace"]
    info = _run([*lmcache, "info", str(recording)])
    report.check("trace.info", _wrong(info, {"level:": "storage", "complete:": "True", "lost_events:": "0"}))
    records = int(_value(info, "total_records:") or 0)
    report.check("trace.has-the-engines-work", [] if records > 100 else [f"only {records} records"])
    out = work / "trace-replay"
    replay = _run([*lmcache, "replay", str(recording), "--output-dir", str(out), *POOL, "--no-l1-use-lazy", "--json"])
    wanted = {"Records replayed": str(records), "Records skipped": "0", "Records failed": "0"}
    report.check("trace.replayed-by-lmcache", _wrong(replay, wanted))
    ctl = str(pathlib.Path(lmcached).with_name("lmcache-ctl"))
    replays = []
    for turn in ("first", "second"):
        page = work / f"trace-replay-{turn}.json"
        _run([ctl, "trace", "replay", str(recording), "--speed", "fast", *POOL, "--json-file", str(page)])
        replays.append(json.loads(page.read_text()))
    counts = replays[0]["records"]
    problems = [f"{key}: {counts[key]}" for key in ("failed", "skipped", "malformed") if counts[key]]
    problems += [] if counts["replayed"] == records else [f"{counts['replayed']} of {records} records replayed"]
    report.check("trace.replayed-by-lmcache-ctl", problems)
    hits = [replay["outcomes"] for replay in replays]
    different = [] if hits[0] == hits[1] and hits[0] else ["two replays of one recording differ"]
    report.check("trace.two-replays-are-the-same", different)


def _run(command: typing.Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        return f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def _value(text: str, label: str) -> str | None:
    line = next((line for line in text.splitlines() if line.strip().startswith(label)), None)
    return line.split()[-1] if line else None


def _wrong(text: str, wanted: dict[str, str]) -> list[str]:
    found = {label: _value(text, label) for label in wanted}
    wrong = [label for label in wanted if found[label] != wanted[label]]
    return [f"{label} {found[label]} and not {wanted[label]} ({text[-400:]})" for label in wrong]
