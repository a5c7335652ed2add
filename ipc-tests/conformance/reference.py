"""What each prompt's output must be: computed by an engine that has no cache and no connector."""

import pathlib

import model
from engine import Engine
from prompts import Prompt
from report import Report


class Reference:
    def __init__(self, python: pathlib.Path, model_directory: pathlib.Path, logs: pathlib.Path):
        self.python, self.model, self.logs = python, model_directory, logs
        self.outputs: dict[str, list[list[int]]] = {}

    def compute(self, scenarios: dict[str, list[list[Prompt]]], report: Report) -> None:
        model.write(self.model)
        outputs = {}
        with Engine("reference", None, self.python, self.model, self.logs) as engine:
            for name, batches in scenarios.items():
                outputs[name] = [result["tokens"] for result in engine.generate(batches)]
        report.check("reference.outputs-differ", self._weak(outputs))
        self.outputs = outputs

    @staticmethod
    def _weak(outputs: dict[str, list[list[int]]]) -> list[str]:
        """Signs that the model does not look at its input, in which case equal outputs would prove nothing."""
        every = [tuple(tokens) for tokens_of_scenario in outputs.values() for tokens in tokens_of_scenario]
        problems = []
        if len(set(every)) != len(every):
            problems.append(f"{len(every)} different prompts gave {len(set(every))} different outputs")
        monotonous = [tokens for tokens in set(every) if len(set(tokens)) < len(tokens) // 2]
        if monotonous:
            problems.append(f"outputs of hardly any variety: {monotonous}")
        return problems
