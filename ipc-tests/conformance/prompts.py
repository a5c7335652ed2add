"""The prompts of one scenario and how much of each the cache must hold, before and after they have been stored."""

import dataclasses
import random

from model import VOCABULARY

CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Prompt:
    name: str
    tokens: list[int]
    cold: int  # cached tokens when the scenario's earlier prompts are stored, and this one is not
    warm: int  # cached tokens when all of them are


def scenario(seed: int) -> list[list[Prompt]]:
    """Batches to be sent one after the other; prompts of different seeds share no chunk."""
    source = random.Random(seed)

    def tokens(count: int) -> list[int]:
        # 0 to 2 are special tokens in the model's configuration.
        return [source.randrange(3, VOCABULARY) for _ in range(count)]

    def fresh(name: str, count: int) -> Prompt:
        prompt = tokens(count)
        return Prompt(name, prompt, 0, count // CHUNK * CHUNK)

    # An exact multiple of the chunk: everything is found, yet the last token has to be computed.
    exact = fresh("exact-multiple", 2 * CHUNK)
    extends = Prompt("extends-a-stored-one", exact.tokens + tokens(300), 2 * CHUNK, 3 * CHUNK)
    half = Prompt("shares-half", exact.tokens[:CHUNK] + tokens(CHUNK + 40), CHUNK, 2 * CHUNK)
    short = fresh("shorter-than-a-chunk", 100)
    lengths = {"a": 2 * CHUNK + 10, "b": CHUNK, "c": 700}
    several = [fresh(f"one-of-several-{name}", count) for name, count in lengths.items()]
    return [[exact], [extends], [half], [short], several]


def single(seed: int) -> list[list[Prompt]]:
    """One prompt that is no multiple of the chunk."""
    source = random.Random(seed)
    tokens = [source.randrange(3, VOCABULARY) for _ in range(600)]
    return [[Prompt("single", tokens, 0, 2 * CHUNK)]]


def flat(batches: list[list[Prompt]]) -> list[Prompt]:
    return [prompt for batch in batches for prompt in batch]
