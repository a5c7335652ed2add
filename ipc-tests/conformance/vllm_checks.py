"""A real vLLM with the real connector: what comes out of the cache must be what would have been computed.

One process per phase, and prompts of their own per scenario, so that no scenario finds what another has stored:

    reference   no cache at all, every prompt of every scenario
    engine_driven cold, lmcache_driven cold
    lmcache_driven warm, engine_driven warm       new processes, so all they know comes from the server
"""

import pathlib

import model
import prompts
from engine import Engine, connector, wrong_counts, wrong_tokens
from processes import Failure
from prompts import Prompt, flat
from report import Report
from server import Server

ENGINE, SERVER = "engine_driven", "lmcache_driven"
SEEDS = {
    "engine_driven": 11,
    "lmcache_driven": 12,
    "stored-engine_driven-served-lmcache_driven": 13,
    "stored-lmcache_driven-served-engine_driven": 14,
    "engine_driven.reset": 15,
    "lmcache_driven.reset": 16,
    "engine_driven.negative-control": 17,
    "lmcache_driven.negative-control": 18,
}


class Phases:
    def __init__(self, server: Server, report: Report, python: pathlib.Path, logs: pathlib.Path):
        self.server, self.report, self.python, self.logs = server, report, python, logs
        self.model = logs.parent / "model"
        model_inputs = {name: prompts.scenario(seed) for name, seed in SEEDS.items()}
        self.batches: dict[str, list[list[Prompt]]] = model_inputs
        self.reference: dict[str, list[list[int]]] = {}

    def engine(self, phase: str, mode: str | None) -> Engine:
        settings = connector(self.server, mode) if mode else None
        return Engine(f"vllm.{phase}", settings, self.python, self.model, self.logs)

    def compute_reference(self) -> None:
        with self.engine("reference", None) as engine:
            for name, batches in self.batches.items():
                self.reference[name] = [result["tokens"] for result in engine.generate(batches)]
        outputs = [tuple(tokens) for reference in self.reference.values() for tokens in reference]
        constant = [tokens for tokens in set(outputs) if len(set(tokens)) < 4]
        problems = []
        if len(set(outputs)) != len(outputs):
            problems.append(f"{len(outputs)} prompts gave {len(set(outputs))} different outputs: the model ignores its input")
        if constant:
            problems.append(f"outputs of hardly any variety: {constant}")
        self.report.check("vllm.reference.outputs-differ", problems)

    def run(self, engine: Engine, name: str, phase: str, check: str) -> None:
        """Sends a scenario's prompts and compares tokens with the reference, and counts with `phase`."""
        batches = self.batches[name]
        results = engine.generate(batches, self.server)
        self.server.require_running()
        self.report.check(f"vllm.{check}.tokens", wrong_tokens(flat(batches), results, self.reference[name]))
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
        batches = self.batches[name]
        cold = engine.generate(batches, self.server)
        problems = wrong_tokens(flat(batches), cold, self.reference[name])
        self.server.overwrite_pool()
        warm = engine.generate(batches, self.server)
        for prompt, result, expected in zip(flat(batches), warm, self.reference[name], strict=True):
            if result["cached"] != prompt.warm:
                problems.append(f"{prompt.name}: {result['cached']} cached tokens, wanted {prompt.warm}")
            elif prompt.warm and result["tokens"] == expected:
                problems.append(f"{prompt.name}: right output from an overwritten pool")
        self.report.check(f"vllm.{name}", problems)
        self.server.clear()

    def end(self, engine: Engine, phase: str) -> None:
        engine.end()
        self.report.check(f"vllm.{phase}.log", engine.forbidden())


def run_all(server: Server, report: Report, python: pathlib.Path, logs: pathlib.Path) -> None:
    phases = Phases(server, report, python, logs)
    model.write(phases.model)
    phases.compute_reference()
    there, back = "stored-engine_driven-served-lmcache_driven", "stored-lmcache_driven-served-engine_driven"

    # Overwriting the pool and resetting both empty the server, so they come where nothing is stored for later phases:
    # first of all, and last of all.
    def engine_cold(engine: Engine) -> None:
        phases.negative_control(engine, ENGINE)
        phases.reset(engine, ENGINE)
        phases.run(engine, ENGINE, "cold", f"{ENGINE}.cold")
        phases.run(engine, there, "cold", f"{there}.cold")

    def server_cold(engine: Engine) -> None:
        phases.run(engine, SERVER, "cold", f"{SERVER}.cold")
        phases.run(engine, back, "cold", f"{back}.cold")
        phases.run(engine, there, "warm", f"{there}.warm")

    def engine_warm(engine: Engine) -> None:
        phases.run(engine, ENGINE, "warm", f"{ENGINE}.warm")
        phases.run(engine, back, "warm", f"{back}.warm")

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
    for phase, mode, step in steps:
        # An engine that dies takes only its own phase with it; the others still say what works.
        try:
            with phases.engine(phase, mode) as engine:
                step(engine)
                phases.end(engine, phase)
        except Failure as failure:
            report.check(f"vllm.{phase}.completes", [str(failure)])
            server.require_running()
