"""The server is killed (SIGKILL) and started again under one engine that goes on working.

Two ways: an outage, which the engine's heartbeat notices, and a restart so fast that it does not. Afterwards the engine
must store again and find what was stored before: the pool outlives the daemon. After an outage it registers again; after a
fast restart it need not, since the registrations outlive the daemon too. In lmcache_driven mode it is told of the restart if it
may have given up what it had asked for: a ping of its was lost, or the daemon had not heard enough of them to know how long it
waits; then it registers once. (The real server has to be registered with again after both.)
"""

import pathlib
import time

import prompts
from engine import Engine, connector, vllm_count, wrong_counts, wrong_tokens
from processes import Failure, until
from prompts import Prompt
from reference import Reference
from report import Report
from server import Server

MODES = ("engine_driven", "lmcache_driven")
# Also how long the engine waits for the answer to a ping: a busy machine must be able to start the daemon within it.
HEARTBEAT = 3
MQ_TIMEOUT = 5
# Several heartbeats: being told, registering, and being believed healthy are one heartbeat each.
RECOVERY_DEADLINE = 30.0
# The real server needs longer to start than that, so with that heartbeat every restart of it is an outage. With
# this one it is back before the engine asks, which is the case that must be shown to fail.
PEER_FAST_HEARTBEAT = 30
PEER_FAST_DEADLINE = 40.0
ATTEMPTS = 5
# Pings of one client after which the server knows how far they are apart, and one more.
KNOWN_AFTER = 5

DEGRADED = "entering degraded mode"
RESUMED = "resuming normal operation"
REGISTERED = "Finished re-registering KV caches"

NAMES = [f"restart.{mode}.{way}" for mode in MODES for way in ("outage", "fast")]
# Per way: one prompt to repeat at once, one that is only asked for at the very end, and new ones to store afterwards.
SCENARIOS = {
    name: [batch for number in range(2 + ATTEMPTS) for batch in prompts.single(1000 * seed + number)]
    for seed, name in enumerate(NAMES, start=1)
}


class Restart:
    def __init__(self, name: str, engine: Engine, server: Server, report: Report, reference: Reference, deadline: float):
        self.name, self.engine, self.server, self.report = name, engine, server, report
        self.deadline = deadline
        self.prompts: list[Prompt] = [batch[0] for batch in SCENARIOS[name]]
        self.outputs = reference.outputs[name]
        # The server copies out of and into the engine's memory.
        self.copied = ".lmcache_driven." in name

    def send(self, number: int, phase: str | None = None) -> tuple[dict, list[str]]:
        """Sends one prompt; returns its result and what is wrong with it."""
        prompt, output = self.prompts[number], self.outputs[number]
        results = self.engine.generate([[prompt]], self.server if self.server.running else None)
        problems = wrong_tokens([prompt], results, [output])
        return results[0], problems + (wrong_counts([prompt], results, phase) if phase else [])

    def before(self) -> int:
        """Stores two prompts; returns how often the engine has registered again so far."""
        problems = self.send(0, "cold")[1] + self.send(0, "warm")[1] + self.send(1, "cold")[1]
        self.report.check(f"{self.name}.before", problems)
        return self.engine.lines(REGISTERED)

    def outage(self) -> None:
        registered, degraded = self.before(), self.engine.lines(DEGRADED)
        self.server.kill()
        # Both of the engine's clients have to notice, the scheduler's and the worker's.
        self.engine.await_lines(DEGRADED, degraded + 2, self.deadline)
        problems = self.send(0)[1]
        self.server.start()
        self.after(registered, problems)

    def fast(self) -> None:
        registered = self.before()
        if not self.server.peer:
            if self.copied:
                self.pings(2 * KNOWN_AFTER)
            self.between_pings()
        self.server.kill()
        self.server.start()
        if self.server.peer:
            self.after(registered, [])
        else:
            self.unnoticed(registered, told=1 if self.copied else 0)

    def asked(self) -> float:
        return self.server.metrics('operation="ping"').get("lmcached_requests_total", 0.0)

    def pings(self, count: int) -> None:
        """Waits until the engine's two clients have pinged so often together."""
        enough = self.asked() + count
        until(lambda: self.asked() >= enough, f"{count} pings", count * HEARTBEAT)

    def between_pings(self) -> None:
        """Waits until both of the engine's clients have pinged, the second soon after the first: for a good third of a heartbeat
        none pings again, and none is lost in the socket of the dead daemon. The engine would be right to notice that."""
        seen, last = self.asked(), None

        def both_have_pinged() -> bool:
            nonlocal seen, last
            new, now = self.asked() - seen, time.monotonic()
            if new == 0:
                return False
            # A little more than half: of two gaps that are alike neither need be shorter than that.
            both = new > 1 or (last is not None and now - last < 0.6 * HEARTBEAT)
            seen, last = seen + new, now
            return both

        until(both_have_pinged, "a pause between two pings", RECOVERY_DEADLINE)

    def unnoticed(self, registered: int, told: int) -> None:
        """The engine's registrations outlive the daemon: it has nothing to notice, and does not register again; but for the
        times that it may be `told` to."""
        degraded = self.engine.lines(DEGRADED)
        self.report.check(f"{self.name}.goes-on", self.send(0)[1])
        self.report.check(f"{self.name}.stores-again", self.store_again())
        self.report.check(f"{self.name}.pool-survives", self.send(1, "warm")[1])
        again, worse = self.engine.lines(REGISTERED) - registered, self.engine.lines(DEGRADED) - degraded
        # Both of its clients say that they are degraded, and only one of them registers.
        fine = again <= told and worse <= 2 * told
        slow = f"an engine notices a restart that takes longer than its heartbeat of {HEARTBEAT} s"
        problems = [] if fine else [f"registered again {again} times, degraded {worse} times; {slow}"]
        self.report.check(f"{self.name}.needs-no-registration", problems)

    def after(self, registered: int, problems: list[str]) -> None:
        problems += self.send(0)[1]
        self.report.check(f"{self.name}.goes-on", problems)

        def recovered() -> bool:
            lines = self.engine.lines
            return lines(REGISTERED) > registered and lines(RESUMED) == lines(DEGRADED)

        try:
            until(recovered, "the engine's new registration", self.deadline)
        except Failure as failure:
            self.report.check(f"{self.name}.registers-again", [str(failure)])
        else:
            self.report.check(f"{self.name}.registers-again", [])
        self.report.check(f"{self.name}.stores-again", self.store_again())
        self.report.check(f"{self.name}.pool-survives", self.send(1, "warm")[1])

    def store_again(self) -> list[str]:
        """A new prompt, sent twice, must be found the second time, exactly (vLLM's own prefix cache is off).

        The first tries may find nothing: the engine's two clients become healthy each at its own heartbeat, and one that is told
        of the restart does so two of them later. So a miss is tried again a heartbeat later with another prompt; a wrong count
        or output is not.
        """
        for number in range(2, 2 + ATTEMPTS):
            if number > 2:
                time.sleep(HEARTBEAT)
            prompt = self.prompts[number]
            problems = self.send(number, "cold")[1]
            result, wrong = self.send(number)
            problems += wrong
            if result["cached"] == vllm_count(prompt, "warm") or problems:
                return problems + wrong_counts([prompt], [result], "warm")
            if result["cached"] != 0:
                return [f"{prompt.name}: {result['cached']} cached tokens, wanted {prompt.warm}"]
        return [f"none of {ATTEMPTS} new prompts was found when it was sent again"]


def run_all(server: Server, report: Report, reference: Reference, logs: pathlib.Path) -> None:
    # mode, heartbeat, deadline, ways: the real server needs an engine of its own for the fast way, see above.
    if server.peer:
        plan = [(mode, HEARTBEAT, RECOVERY_DEADLINE, ["outage"]) for mode in MODES]
        plan.append(("lmcache_driven", PEER_FAST_HEARTBEAT, PEER_FAST_DEADLINE, ["fast"]))
    else:
        plan = [(mode, HEARTBEAT, RECOVERY_DEADLINE, ["outage", "fast"]) for mode in MODES]
    for mode, heartbeat, deadline, ways in plan:
        settings = connector(server, mode, load_failure="recompute", timeout=MQ_TIMEOUT, heartbeat=heartbeat)
        name = f"restart.{mode}.{'-'.join(ways)}"
        # A check that failed half way may have left it killed.
        if not server.running:
            server.start()
        try:
            with Engine(name, settings, reference.python, reference.model, logs) as engine:
                for way in ways:
                    restart = Restart(f"restart.{mode}.{way}", engine, server, report, reference, deadline)
                    restart.outage() if way == "outage" else restart.fast()
        except Failure as failure:
            report.check(f"{name}.completes", [str(failure)])
            server.require_not_crashed()
