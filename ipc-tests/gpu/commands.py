"""The commands of a worker of the tests: one a line, with one line of answer, as `src/bin/gpu-worker.rs` has them.

`call` is done here, the others by who has the memory. By itself this is a worker without memory, which needs no torch:

    python3 commands.py
"""

import sys
from collections.abc import Callable

from dealer import Dealer, line, requests


def serve(execute: Callable[[list[str]], str]) -> None:
    """Does commands until there are no more."""
    connection: Dealer | None = None

    def call(endpoint: str, operation: str, path: str) -> str:
        # One connection for all that the worker asks, as an engine's worker has it: the daemon knows the process by it.
        nonlocal connection
        try:
            if connection is None:
                connection = Dealer(endpoint)
            return line(connection.call(operation, requests(path)))
        except OSError as error:
            # The daemon has gone: the next call finds another.
            if connection is not None:
                connection.close()
            connection = None
            return f"error {error}"

    print("ready", flush=True)
    for text in sys.stdin:
        match text.split():
            case ["call", endpoint, operation, path]:
                answer = call(endpoint, operation, path)
            case words:
                answer = execute(words)
        print(answer, flush=True)


def nothing_else(words: list[str]) -> str:
    raise RuntimeError(f"without memory there is no {words}")


if __name__ == "__main__":
    serve(nothing_else)
