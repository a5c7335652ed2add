"""The real `lmcache bench server` against one running server: layouts, ranks and transfer modes."""

import dataclasses
import os
import pathlib
import re

from processes import Conversation, Failure, remove_worker_segments
from report import Report
from server import Server

HERE = pathlib.Path(__file__).parent
DEADLINE = 120.0
REQUESTS = 2

GQA = "(2,1024,16,8,128):float16:4"
MLA = "(1,1024,16,1,512):float16:4"
TWO_GROUPS = "(2,1024,16,8,128):float16:3;(2,1024,16,2,64):bfloat16:2"
# Two groups of which one keeps K and V in a single plane, as a model with an indexer beside its attention has.
MIXED_GROUPS = "(1,1024,16,1,128):float16:2;(2,1024,16,4,64):float16:2"
GQA_MORE_LAYERS = "(2,1024,16,8,128):float16:6"
GQA_OTHER_HEADS = "(2,1024,16,4,64):float16:4"


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    mode: str
    shape: str
    start: int  # the tool's tokens follow from the sequence number: other numbers are other keys
    tp: int = 1
    mla: bool = False

    @property
    def check(self) -> str:
        return f"bench.{self.mode}.{self.name}.tp{self.tp}"


def plan() -> list[Run]:
    runs = []
    for mode in ("engine_driven", "lmcache_driven"):
        base = 100 if mode == "engine_driven" else 500
        for tp in (1, 2):
            runs.append(Run("gqa", mode, GQA, base + 10 * tp, tp))
            runs.append(Run("mla", mode, MLA, base + 100 + 10 * tp, tp, mla=True))
    for tp in (1, 2):
        # The engine-driven client refuses more than one group by itself.
        runs.append(Run("two-groups", "lmcache_driven", TWO_GROUPS, 700 + 10 * tp, tp))
        runs.append(Run("mixed-groups", "lmcache_driven", MIXED_GROUPS, 750 + 10 * tp, tp))
    # The same keys as above, now for objects of another size. What is stored does not fit, so it must count as a miss
    # and be replaced. Last, because the real server stores nothing new here and fails the retrieve.
    for mode, base in (("engine_driven", 100), ("lmcache_driven", 500)):
        runs.append(Run("same-keys-more-layers", mode, GQA_MORE_LAYERS, base + 10))
        runs.append(Run("same-keys-other-heads", mode, GQA_OTHER_HEADS, base + 20, tp=2))
    return runs


def judge(run: Run, output: str, status: int) -> list[str]:
    """What is wrong with the tool's output; it exits with 0 whatever it found."""
    problems = []
    if status != 0:
        last = output.strip().splitlines()[-1:] or ["no output"]
        problems.append(f"exit status {status}: {last[0].strip()}")

    lines = re.findall(r"^(Total requests|Checksum OK|Checksum FAIL):\s+(\d+)$", output, re.M)
    summary = {name: int(value) for name, value in lines}
    expected = {"Total requests": REQUESTS, "Checksum OK": REQUESTS, "Checksum FAIL": 0}
    for name, value in expected.items():
        if summary.get(name) != value:
            problems.append(f"{name} {summary.get(name)}, wanted {value}")

    for sequence in range(run.start, run.start + REQUESTS):
        def line(kind: str, operation: str) -> str:
            found = re.search(rf"\[seq {sequence}/{kind}\] {operation}: (.*)", output)
            return found.group(1) if found else "absent"

        cold, warm = line("cold", "LOOKUP"), line("warm", "LOOKUP")
        if not cold.startswith("0/2 chunks hit"):
            problems.append(f"seq {sequence} cold lookup: {cold}, wanted no hit")
        if not line("cold", "STORE").startswith("stored (512 tokens"):
            problems.append(f"seq {sequence} store: {line('cold', 'STORE')}")
        if not warm.startswith("2/2 chunks hit"):
            problems.append(f"seq {sequence} warm lookup: {warm}, wanted 2/2")
        if not re.match(rf"retrieved \(512 tokens, .* {run.tp} workers\)", line("warm", "RETRIEVE")):
            problems.append(f"seq {sequence} retrieve: {line('warm', 'RETRIEVE')}")
    problems += [f"the tool warned: {text}" for text in re.findall(r"\[(?:warning|WARNING)\] (.*)", output)]
    return problems


def arguments(run: Run, server: Server) -> list[str]:
    tool = [
        "--mode", "cpu", "--transfer-mode", run.mode, "--rpc-url", f"tcp://127.0.0.1:{server.port}",
        "--url", server.url, "--kvcache-shape-spec", run.shape, "--tp-size", str(run.tp), "--start", str(run.start),
        "--end", str(run.start + REQUESTS), "--interval", "0",
    ]  # fmt: skip
    return tool + (["--use-mla"] if run.mla else [])


def run_all(server: Server, report: Report, python: pathlib.Path, logs: pathlib.Path) -> None:
    env = os.environ | {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "DO_NOT_TRACK": "1"}
    driver = None
    for run in plan():
        if driver is None:
            driver = Conversation([str(python), "-B", str(HERE / "bench_driver.py")], logs / "bench.driver.log", env)
        log = logs / f"{run.check}.log"
        log.touch()
        try:
            request = {"arguments": arguments(run, server), "output": str(log), "settle": server.peer}
            status = driver.ask(request, "bench", DEADLINE)
            problems = judge(run, log.read_text(errors="replace"), status)
        except Failure as failure:
            problems = [str(failure)]
            # It may still be busy with this run: the next one gets a new driver.
            driver.end()
            driver = None
        remove_worker_segments(log)
        try:
            server.require_not_crashed()
        except Failure as failure:
            report.check(run.check, problems + [str(failure)])
            break
        report.check(run.check, problems)
    if driver:
        driver.end()
