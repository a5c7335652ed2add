"""A real vLLM with the real connector: what comes out of the cache must be what would have been computed.

One process per phase, and prompts of their own per scenario, so that no scenario finds what another has stored. The
warm phases are new processes: all they know of the prompts comes from the server. What the outputs must be was computed
before, by an engine that has no cache at all (reference.py).
"""

import dataclasses
import pathlib

import prompts
from engine import Engine, connector, vllm_count, wrong_counts, wrong_tokens
from processes import Failure
from prompts import flat
from reference import Reference
from report import Report
from server import Server

ENGINE, SERVER = "engine_driven", "lmcache_driven"
THERE, BACK = "stored-engine_driven-served-lmcache_driven", "stored-lmcache_driven-served-engine_driven"
NAMES = [ENGINE, SERVER, THERE, BACK]
NAMES += [f"{mode}.{what}" for mode in (ENGINE, SERVER) for what in ("reset", "negative-control")]
SCENARIOS = {name: prompts.scenario(seed) for seed, name in enumerate(NAMES, start=11)}


@dataclasses.dataclass(frozen=True)
class Phases:
    server: Server
    report: Report
    reference: Reference
    logs: pathlib.Path

    def run(self, engine: Engine, name: str, phase: str, check: str) -> None:
        """Sends a scenario's prompts and compares tokens with the reference, and counts with `phase`."""
        batches = SCENARIOS[name]
        results = engine.generate(batches, self.server)
        self.server.require_not_crashed()
        self.report.check(f"vllm.{check}.tokens", wrong_tokens(flat(batches), results, self.reference.outputs[name]))
        self.report.check(f"vllm.{check}.cached-counts", wrong_counts(flat(batches), results, phase))

    def reset(self, engine: Engine, mode: str) -> None:
        name = f"{mode}.reset"
        self.run(engine, name, "cold", f"{mode}.before-reset")
        engine.reset()
        # Nothing of the first round may be left, and storing again must work.
        self.run(engine, name, "cold", f"{mode}.after-reset")
        self.run(engine, name, "warm", f"{mode}.stored-again-after-reset")

    def negative_control(self, engine: Engine, mode: str) -> None:
        """With garbage in the pool the outputs must change, or all equal outputs above prove nothing."""
        name = f"{mode}.negative-control"
        batches = SCENARIOS[name]
        cold = engine.generate(batches, self.server)
        problems = wrong_tokens(flat(batches), cold, self.reference.outputs[name])
        try:
            self.server.overwrite_pool()
            warm = engine.generate(batches, self.server)
        finally:
            self.server.clear()
        for prompt, result, expected in zip(flat(batches), warm, self.reference.outputs[name], strict=True):
            if result["cached"] != vllm_count(prompt, "warm"):
                problems.append(f"{prompt.name}: {result['cached']} cached tokens, so nothing was proven")
            elif prompt.warm and result["tokens"] == expected:
                problems.append(f"{prompt.name}: right output from an overwritten pool")
        self.report.check(f"vllm.{name}", problems)

    def end(self, engine: Engine, phase: str) -> None:
        engine.end()
        self.report.check(f"vllm.{phase}.log", engine.forbidden())


def run_all(server: Server, report: Report, reference: Reference, logs: pathlib.Path) -> None:
    phases = Phases(server, report, reference, logs)

    # Overwriting the pool and resetting both empty the server, so they come where nothing is stored for later phases:
    # first of all, and last of all.
    def engine_cold(engine: Engine) -> None:
        phases.negative_control(engine, ENGINE)
        phases.reset(engine, ENGINE)
        phases.run(engine, ENGINE, "cold", f"{ENGINE}.cold")
        phases.run(engine, THERE, "cold", f"{THERE}.cold")

    def server_cold(engine: Engine) -> None:
        phases.run(engine, SERVER, "cold", f"{SERVER}.cold")
        phases.run(engine, BACK, "cold", f"{BACK}.cold")
        phases.run(engine, THERE, "warm", f"{THERE}.warm")

    def engine_warm(engine: Engine) -> None:
        phases.run(engine, ENGINE, "warm", f"{ENGINE}.warm")
        phases.run(engine, BACK, "warm", f"{BACK}.warm")

    def server_warm(engine: Engine) -> None:
        phases.run(engine, SERVER, "warm", f"{SERVER}.warm")
        phases.negative_control(engine, SERVER)
        phases.reset(engine, SERVER)

    steps = [
        ("engine_driven.cold", ENGINE, engine_cold),
        ("lmcache_driven.cold", SERVER, server_cold),
        ("engine_driven.warm", ENGINE, engine_warm),
        ("lmcache_driven.warm", SERVER, server_warm),
    ]
    before = server.metrics()
    for phase, mode, step in steps:
        # An engine that dies takes only its own phase with it; the others still say what works.
        try:
            name = f"vllm.{phase}"
            with Engine(name, connector(server, mode), reference.python, reference.model, logs) as engine:
                step(engine)
                phases.end(engine, phase)
        except Failure as failure:
            report.check(f"vllm.{phase}.completes", [str(failure)])
            server.require_not_crashed()

    if not server.peer:
        report.check("vllm.moves-the-metrics", still(before, server.metrics()))


# What a real engine must have moved by the end: it reports the life of its own blocks (L0), and everything else follows
# from its lookups, stores and retrieves.
MOVED = [
    "lmcache_mp_l0_block_lifetime_seconds_count",
    "lmcache_mp_l0_block_idle_before_evict_seconds_count",
    "lmcache_mp_l0_block_reuse_gap_seconds_count",
    "lmcache_mp_lookup_requested_tokens_total",
    "lmcache_mp_lookup_hit_tokens_total",
    "lmcache_mp_l0_l1_store_throughput_gbs_count",
    "lmcache_mp_l0_l1_load_throughput_gbs_count",
    "lmcache_mp_num_chunks_loaded_total",
    "lmcache_mp_sm_read_requests_total",
    "lmcache_mp_sm_write_requests_total",
    "lmcache_mp_l1_read_keys_total",
    "lmcache_mp_l1_write_keys_total",
]


def still(before: dict[str, float], after: dict[str, float]) -> list[str]:
    return [f"{name} stayed at {after.get(name)}" for name in MOVED if not after.get(name, 0.0) > before.get(name, 0.0)]
