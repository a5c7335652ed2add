"""Runs the conformance checks; run.sh is the way to start it."""

import argparse
import os
import pathlib
import signal
import sys
import traceback
import typing

import bench_checks
import l2_checks
import restart_checks
import survive_checks
import trace_checks
import vllm_checks
from processes import Failure, Process
from reference import Reference
from report import Report
from server import Server


def guarded(name: str, report: Report, body: typing.Callable[[], None]) -> None:
    """An unforeseen end of one part is a failed check like any other; the parts after it still run."""
    try:
        body()
    except Failure as failure:
        report.check(f"{name}.completes", [str(failure)])
    except Exception as error:
        traceback.print_exc()
        report.check(f"{name}.completes", [f"{type(error).__name__}: {error}"])
    finally:
        Process.end_all()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["all", "bench", "l2", "vllm", "restart", "survive"], required=True)
    parser.add_argument("--server", choices=["lmcached", "peer"], required=True)
    parser.add_argument("--venv", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--lmcached", required=True)
    options = parser.parse_args()

    # A signal must unwind the stack: the `finally` blocks are what ends the children.
    def interrupted(number, _frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)
    # Nothing here leaves this machine, and a proxy must not be asked for 127.0.0.1.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    # Logs are appended to and searched, so those of an earlier run must go.
    logs = options.work / "logs"
    for old in logs.glob("*.log"):
        old.unlink()

    python = options.venv / "bin" / "python"
    report = Report(options.server == "peer")
    reference = Reference(python, options.work / "model", logs)
    wanted = ["bench", "l2", "vllm", "restart", "survive"] if options.only == "all" else [options.only]

    scenarios = {}
    if "vllm" in wanted:
        scenarios |= vllm_checks.SCENARIOS
    if "restart" in wanted:
        scenarios |= restart_checks.SCENARIOS
    # The real server loses its cache with its life: there is nothing to prove with it. A whole run does the half of this
    # that must not fail.
    survivors = []
    if "survive" in wanted and options.server == "lmcached":
        survivors = [name for name in survive_checks.NAMES if options.only == "survive" or name.endswith(".recompute")]
        scenarios |= {name: survive_checks.SCENARIOS[name] for name in survivors}

    def with_server(name: str, checks: typing.Callable[[Server], None], flags: typing.Sequence[str] = ()) -> None:
        """Each part has a server of its own, so that one part's failure is not the next one's start."""
        server = Server(options.server, options.lmcached, options.venv, logs / f"server.{name}.log", flags)
        try:
            guarded(name, report, lambda: checks(server.start()))
        finally:
            server.stop()

    if "bench" in wanted:
        with_server("bench", lambda server: bench_checks.run_all(server, report, python, logs))
    # Both servers take part, so there is nothing to prove with one of them alone.
    if "l2" in wanted and options.server == "lmcached":
        guarded("l2", report, lambda: l2_checks.run_all(report, python, options.work, logs, options))
    if scenarios:
        guarded("reference", report, lambda: reference.compute(scenarios, report))
    # Without the reference there is nothing to compare with, and its failure is on the list already.
    if "vllm" in wanted and reference.outputs:
        recording = options.work / "vllm.lct"
        recording.unlink(missing_ok=True)
        recorded = options.server == "lmcached"
        flags = ["--trace-level", "storage", "--trace-output", str(recording)] if recorded else []
        with_server("vllm", lambda server: vllm_checks.run_all(server, report, reference, logs), flags)
        if recorded:
            places = (recording, options.venv, options.lmcached, options.work)
            guarded("trace", report, lambda: trace_checks.run_all(report, *places))
    if "restart" in wanted and reference.outputs:
        with_server("restart", lambda server: restart_checks.run_all(server, report, reference, logs))
    if survivors and reference.outputs:
        with_server("survive", lambda server: survive_checks.run_all(server, report, reference, logs, survivors))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
