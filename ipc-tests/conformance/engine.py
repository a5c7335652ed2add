"""The runner's side of engine_worker.py: starts one engine, talks to it, reads its log."""

import json
import os
import pathlib
import typing

from processes import Conversation, Failure, remove_worker_segments, until
from prompts import Prompt
from server import Server

HERE = pathlib.Path(__file__).parent
START_DEADLINE = 240.0
ANSWER_DEADLINE = 120.0
END_DEADLINE = 60.0

# Each of these means that the engine went on without the cache, or by another path than the one under test.
FORBIDDEN = ["entering degraded mode", "falling back to pickle", "Failed to scatter", "Marking server as unhealthy"]


def threads() -> str:
    """The same cores for every engine: with another thread count sums round differently, and so could outputs."""
    return ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2])


def environment() -> dict[str, str]:
    return os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": threads(),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        # Lets the worker process run the function that counts unanswered stores.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "LMCACHE_TRACK_USAGE": "false",
        "LMCACHE_DISABLE_BANNER": "1",
        "PYTHONHASHSEED": "0",
        "TORCHDYNAMO_DISABLE": "1",
    }


def connector(server: Server, mode: str, load_failure: str = "fail", timeout: int = 60, heartbeat: int = 10) -> dict:
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": load_failure,
        "kv_connector_extra_config": {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": server.port,
            "lmcache.mp.mp_transfer_mode": mode,
            "lmcache.mp.mq_timeout": timeout,
            "lmcache.mp.heartbeat_interval": heartbeat,
        },
    }


class Engine:
    def __init__(self, name: str, settings: dict | None, python: pathlib.Path, model: pathlib.Path, logs: pathlib.Path):
        self.log = logs / f"engine.{name}.log"
        arguments = json.dumps({"model": str(model), "connector": settings})
        command = [str(python), "-B", str(HERE / "engine_worker.py"), arguments]
        self._process = Conversation(command, self.log, environment())
        try:
            self._process.hear("engine start", START_DEADLINE)
        except Failure:
            # No `with` block has been entered yet that would end it, and the next engine wants the cores.
            self.end()
            raise

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.end()

    def _ask(self, command: dict) -> dict:
        what = f"engine {command['do']}"
        answer = self._process.ask(command, what, ANSWER_DEADLINE)
        if "error" in answer:
            raise Failure(f"{what}: {answer['error']} (log: {self.log.name})")
        return answer

    def generate(self, batches: list[list[Prompt]], server: Server | None = None) -> list[dict]:
        """One result per prompt; after each batch, waits until everything it stored is there."""
        results = []
        for batch in batches:
            results += self._ask({"do": "generate", "prompts": [prompt.tokens for prompt in batch]})["results"]
            if server:
                self.drain()
                server.settle()
        return results

    def drain(self) -> None:
        left = self._ask({"do": "drain"})["under_way"]
        if left:
            raise Failure(f"{left} stores are still unanswered (log: {self.log.name})")

    def reset(self) -> None:
        if not self._ask({"do": "reset"})["reset"]:
            raise Failure(f"reset_prefix_cache(reset_connector=True) answered false (log: {self.log.name})")

    def lines(self, text: str) -> int:
        """How many lines of the log so far have this text."""
        return sum(text in line for line in self.log.read_text(errors="replace").splitlines())

    def await_lines(self, text: str, count: int, seconds: float) -> None:
        until(lambda: self.lines(text) >= count, f"{count} log lines '{text}' of the engine ({self.log.name})", seconds)

    def forbidden(self) -> list[str]:
        return [f"{self.log.name}: {self.lines(text)} x '{text}'" for text in FORBIDDEN if self.lines(text)]

    def end(self) -> None:
        if self._process.running:
            try:
                self._process.tell({"do": "exit"}, "engine exit")
            except Failure:
                pass
            # Left to itself it unregisters from the server; that belongs to what is tested.
            self._process.wait(END_DEADLINE)
        self._process.end()
        remove_worker_segments(self.log)


def wrong_tokens(prompts: typing.Iterable[Prompt], results: list[dict], reference: list[list[int]]) -> list[str]:
    return [
        f"{prompt.name}: tokens {result['tokens']}, without a cache {expected}"
        for prompt, result, expected in zip(prompts, results, reference, strict=True)
        if result["tokens"] != expected
    ]


def vllm_count(prompt: Prompt, phase: str) -> int:
    """vLLM's own count. It computes at least the last token, so it does not count that one even when it is held."""
    return min(getattr(prompt, phase), len(prompt.tokens) - 1)


def wrong_counts(prompts: typing.Iterable[Prompt], results: list[dict], phase: str) -> list[str]:
    """Both counts must be exact: vLLM's own, and what the connector says it had from the server."""
    problems = []
    for prompt, result in zip(prompts, results, strict=True):
        held = getattr(prompt, phase)
        stats = {"num_vllm_cached_tokens": 0, "num_lmcache_cached_tokens": held, "num_lmcache_extra_cached_tokens": held}
        if result["cached"] != vllm_count(prompt, phase):
            problems.append(f"{prompt.name}: {result['cached']} cached tokens, wanted {vllm_count(prompt, phase)}")
        elif result["stats"] != stats:
            problems.append(f"{prompt.name}: connector's count {result['stats']}, wanted {stats}")
    return problems
