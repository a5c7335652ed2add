"""Runs the conformance checks; run.sh is the way to start it."""

import argparse
import os
import pathlib
import signal
import sys

import bench_checks
import vllm_checks
from processes import Failure, Process
from report import Report
from server import Server


def section(name: str, options: argparse.Namespace, report: Report, checks) -> None:
    """One part of the run, with a server of its own; an unforeseen end of the part is a failed check like any other."""
    logs = options.work / "logs"
    server = Server(options.server, options.lmcached, options.venv, logs / f"{name}.server.log")
    try:
        server.start()
        checks(server, report, options.venv / "bin" / "python", logs)
    except Failure as failure:
        report.check(f"{name}.completes", [str(failure)])
    except OSError as error:
        report.check(f"{name}.completes", [f"{type(error).__name__}: {error}"])
    finally:
        Process.end_all()
        server.stop()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["all", "bench", "vllm", "restart"], required=True)
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
    # The engine gets its model and the server its log from here; logs of an earlier run would be searched too.
    for old in (options.work / "logs").glob("*.log"):
        old.unlink()

    report = Report(options.server == "peer")
    parts = {"bench": bench_checks.run_all, "vllm": vllm_checks.run_all}
    for name, checks in parts.items():
        if options.only in ("all", name):
            section(name, options, report, checks)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
