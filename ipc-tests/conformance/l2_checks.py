"""One store, two servers: what the real `lmcache server` has written lmcached serves, and the reverse.

`lmcache bench server` runs against the first server, which then is stopped. The same run against the second one, whose
L1 is empty, must hit everything at its first lookup, and the tool's checksums of what it retrieved must be those of the
first run. The tool's bytes are the same in every run, and it erases its blocks before the warm retrieve (bench_driver.py).
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import typing

import bench_checks
from processes import Conversation, Failure, Process, free_ports, remove_worker_segments, until
from report import Report
from server import Server

CHUNKS = 2
PERSIST_DEADLINE = 60.0
RUNS = [
    bench_checks.Run("gqa", "engine_driven", bench_checks.GQA, 900),
    bench_checks.Run("gqa", "lmcache_driven", bench_checks.GQA, 920, tp=2),
]


@dataclasses.dataclass
class Store:
    """A place that both servers reach."""

    kind: str
    adapter: dict
    count: typing.Callable[[], int]
    end: typing.Callable[[], None]


def fs_store(work: pathlib.Path) -> Store:
    directory = work / "shared-fs"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    adapter = {"type": "fs", "base_path": str(directory)}
    return Store("fs", adapter, lambda: len(list(directory.glob("*.data"))), lambda: shutil.rmtree(directory))


def resp_store(work: pathlib.Path) -> Store:
    binary = shutil.which("redis-server")
    if not binary:
        raise Failure("redis-server is not installed; ipc-tests/servers.sh installs it")
    [port] = free_ports(1)
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    redis = Process(command, work / "logs" / "l2.redis.log", dict(os.environ))

    def keys() -> list[str]:
        command = ["redis-cli", "-p", str(port), "--scan"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()

    def count() -> int:
        # lmcached keeps its checksums beside the values, under keys of their own.
        return sum(not key.startswith("lmcached@") for key in keys())

    until(lambda: redis.running and _answers(port), "redis-server answers", 20.0)
    return Store("resp", {"type": "resp", "host": "127.0.0.1", "port": port}, count, redis.end)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def digests(output: str, kind: str) -> dict[int, str]:
    found = re.findall(rf"\[seq (\d+)/{kind}\] CHECKSUM: (\w+) ", output)
    return {int(sequence): digest for sequence, digest in found}


class Pair:
    def __init__(self, store: Store, report: Report, python: pathlib.Path, logs: pathlib.Path, options):
        self.store, self.report, self.python, self.logs, self.options = store, report, python, logs, options

    def bench(self, server: Server, run: bench_checks.Run, log: pathlib.Path) -> tuple[int, str]:
        log.write_text("")
        env = os.environ | {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "DO_NOT_TRACK": "1"}
        driver_log = self.logs / "l2.driver.log"
        driver = Conversation([str(self.python), "-B", str(bench_checks.HERE / "bench_driver.py")], driver_log, env)
        try:
            request = {"arguments": bench_checks.arguments(run, server), "output": str(log), "settle": server.peer}
            status = driver.ask(request, "bench", bench_checks.DEADLINE)
        finally:
            driver.end()
            remove_worker_segments(log)
        return status, log.read_text(errors="replace")

    def server(self, kind: str, name: str) -> Server:
        extra = ["--l2-adapter", json.dumps(self.store.adapter)]
        return Server(kind, self.options.lmcached, self.options.venv, self.logs / f"server.{name}.log", extra)

    def check(self, writer: str, reader: str, run: bench_checks.Run) -> None:
        name = f"l2.{self.store.kind}.{writer}-to-{reader}.{run.mode}.tp{run.tp}"
        problems: list[str] = []
        try:
            before = self.store.count()
            server = self.server(writer, f"{name}.writer")
            try:
                status, first = self.bench(server.start(), run, self.logs / f"{name}.writer.log")
                problems += [f"writer: {problem}" for problem in bench_checks.judge(run, first, status)]
                wanted = before + CHUNKS * bench_checks.REQUESTS * run.tp
                until(lambda: self.store.count() >= wanted, f"{wanted} objects in the store", PERSIST_DEADLINE)
            finally:
                server.stop()
            server = self.server(reader, f"{name}.reader")
            try:
                _, second = self.bench(server.start(), run, self.logs / f"{name}.reader.log")
                server.require_not_crashed()
            finally:
                server.stop()
            problems += self.judge_reader(run, first, second)
        except Failure as failure:
            problems.append(str(failure))
        self.report.check(name, problems)

    def judge_reader(self, run: bench_checks.Run, first: str, second: str) -> list[str]:
        problems = []
        for sequence in range(run.start, run.start + bench_checks.REQUESTS):
            for kind in ("cold", "warm"):
                found = re.search(rf"\[seq {sequence}/{kind}\] LOOKUP: (.*)", second)
                line = found.group(1) if found else "absent"
                if not line.startswith(f"{CHUNKS}/{CHUNKS} chunks hit"):
                    problems.append(f"seq {sequence} {kind} lookup of the reader: {line}")
        written, read = digests(first, "warm"), digests(second, "warm")
        if len(written) != bench_checks.REQUESTS or written != read:
            problems.append(f"checksums written {written}, read {read}")
        return problems


def run_all(report: Report, python: pathlib.Path, work: pathlib.Path, logs: pathlib.Path, options) -> None:
    for make in (fs_store, resp_store):
        for writer, reader in (("peer", "lmcached"), ("lmcached", "peer")):
            store = make(work)
            try:
                pair = Pair(store, report, python, logs, options)
                for run in RUNS:
                    pair.check(writer, reader, run)
            finally:
                store.end()
