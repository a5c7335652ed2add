"""The server is killed (SIGKILL) and started again ten times under an engine that never stops generating.

The server runs under `lmcached-keeper`, which keeps its connections as systemd does. With the load failure policy `recompute`
no request may fail or differ from what an engine without a cache says, and after each restart everything that was stored
before must be found again. What it costs is printed: the seconds from the kill to the first batch that is served as before,
and how many prompts were computed again meanwhile. `late` is the same with a daemon that comes back after the engine has given
up waiting for it: what it had asked for is in the sockets still, and must not be done. With the policy `fail` the engine
reports a failed load to its client; how many requests that were is printed. `alone` is `recompute` without a keeper: what the
engine sends between the kill and the moment in which it sees its connection end is lost, and LMCache's client waits for it.
"""

import concurrent.futures
import pathlib
import random
import time
import typing

import prompts
from engine import Engine, connector, vllm_count, wrong_tokens
from processes import Failure
from reference import Reference
from report import Report
from server import Server

MODES = ("engine_driven", "lmcache_driven")
POLICIES = ("recompute", "late", "fail", "alone")
RESTARTS = 10
HEARTBEAT = 1
# A ping that is sent at the kill, or up to a heartbeat later, has failed by then or is about to.
LATE = 1.3
MQ_TIMEOUT = 5
# From the kill until the engine is served as before. Two of its timeouts and several heartbeats.
RECOVERY_DEADLINE = 60.0
# The kill comes at a moment of a batch that nobody chose.
LONGEST_DELAY = 1.0
PROMPTS = 5

NAMES = [f"survive.{mode}.{policy}" for mode in MODES for policy in POLICIES]
SCENARIOS = {
    name: [batch for number in range(PROMPTS) for batch in prompts.single(50_000 + 100 * seed + number)]
    for seed, name in enumerate(NAMES)
}


# One thread for all restarts, and to the end: a server dies with the thread that has started it (PR_SET_PDEATHSIG).
RESTARTER = concurrent.futures.ThreadPoolExecutor(max_workers=1)


class Kill:
    """Kills the server after a while and starts it again."""

    def __init__(self, server: Server, delay: float):
        self.server, self.delay = server, delay
        self.at = 0.0
        self.back = RESTARTER.submit(self._run)

    def _run(self) -> None:
        time.sleep(self.delay)
        self.at = time.monotonic()
        self.server.kill()
        self.server.start()


class Survive:
    def __init__(self, name: str, engine: Engine, server: Server, report: Report, reference: Reference):
        self.name, self.engine, self.server, self.report = name, engine, server, report
        self.batch = prompts.flat(SCENARIOS[name])
        self.outputs = [output for output in reference.outputs[name]]
        self.tolerant = not name.endswith(".fail")
        # The same kills in every run.
        self.delays = random.Random(name)
        self.problems: list[str] = []

    def send(self) -> tuple[int, int]:
        """Sends all prompts at once; returns how many were served from the cache as far as it goes, and how many failed."""
        results = self.engine.generate([self.batch])
        failed = [result["reason"] == "error" for result in results]
        if self.tolerant and any(failed):
            self.problems.append(f"{sum(failed)} requests failed")
        right = [number for number, bad in enumerate(failed) if not bad]
        chosen = [self.batch[number] for number in right], [results[number] for number in right]
        self.problems += wrong_tokens(*chosen, [self.outputs[number] for number in right])
        served = sum(results[number]["cached"] == vllm_count(self.batch[number], "warm") for number in right)
        return served, sum(failed)

    def restart(self, number: int) -> None:
        kill = Kill(self.server, self.delays.uniform(0, LONGEST_DELAY))
        recomputed = failed = 0
        deadline = time.monotonic() + RECOVERY_DEADLINE
        while True:
            back = kill.back.done()
            served, errors = self.send()
            now = time.monotonic()
            failed += errors
            recomputed += len(self.batch) - served - errors
            if back:
                kill.back.result()
            # Only a batch that began after the restart says that all is as before.
            if back and served == len(self.batch):
                break
            if now > deadline:
                self.problems.append(f"restart {number}: {served} of {len(self.batch)} prompts served after {RECOVERY_DEADLINE} s")
                break
        kill.back.result()
        seconds = now - kill.at
        print(
            f"{self.name}: restart {number}: {seconds:.1f} s until served as before, "
            f"{recomputed} prompts computed again, {failed} requests failed",
            flush=True,
        )

    def warm(self) -> None:
        # What an earlier batch stored is there when its stores have been answered.
        self.engine.generate([self.batch], self.server)
        served, _ = self.send()
        if served != len(self.batch):
            self.problems.append(f"before the first kill {served} of {len(self.batch)} prompts are served")

    def run(self) -> None:
        self.warm()
        for number in range(1, RESTARTS + 1):
            self.restart(number)
        self.report.check(self.name, self.problems)


# With the policy `fail`, vLLM 0.32's core ends with an assertion of its own (_update_from_kv_xfer_finished) when it has failed
# a request whose load was under way. In the engine-driven mode, LMCache's worker raises when the answer to PREPARE_STORE or
# PREPARE_RETRIEVE does not come within its deadline, and the core ends. Neither is the server's doing.
OWN_ENDS = {
    "due to KV load failure": "loads failed, and vLLM's core ended with its own assertion",
    "LMCacheTimeoutError": "answers were waited for in vain, and LMCache's worker ended the core",
}


def run_replacing(name: str, start: typing.Callable[[str], Engine], server: Server, report: Report, reference: Reference) -> None:
    """The restarts for engines that may end by themselves: that is reported, and the next restart gets a new one."""
    number = 1
    while number <= RESTARTS:
        with start(f"{name}.{number}") as engine:
            survive = Survive(name, engine, server, report, reference)
            survive.warm()
            while number <= RESTARTS:
                try:
                    survive.restart(number)
                except Failure:
                    ends = [(engine.lines(words), meaning) for words, meaning in OWN_ENDS.items() if engine.lines(words)]
                    if not ends:
                        raise
                    for count, meaning in ends:
                        print(f"{name}: restart {number}: {count} {meaning}", flush=True)
                    number += 1
                    break
                number += 1
        report.check(f"{name}.outputs", survive.problems)


def run_all(server: Server, report: Report, reference: Reference, logs: pathlib.Path, names: list[str]) -> None:
    for name in names:
        _, mode, policy = name.split(".")
        load_failure = "fail" if policy == "fail" else "recompute"
        # Under a keeper or without, and late or not, it has to be started anew.
        kept, late = policy != "alone", LATE if policy == "late" else 0.0
        if (kept, late) != (server.kept, server.late):
            server.stop()
            server.kept, server.late = kept, late
        settings = connector(server, mode, load_failure=load_failure, timeout=MQ_TIMEOUT, heartbeat=HEARTBEAT)
        if not server.running:
            server.start()

        def start(label: str, settings: dict = settings) -> Engine:
            return Engine(label, settings, reference.python, reference.model, logs)

        try:
            if policy in ("fail", "alone"):
                run_replacing(name, start, server, report, reference)
            else:
                with start(name) as engine:
                    Survive(name, engine, server, report, reference).run()
            server.require_not_crashed()
        except Failure as failure:
            report.check(f"{name}.completes", [str(failure)])
            server.require_not_crashed()
