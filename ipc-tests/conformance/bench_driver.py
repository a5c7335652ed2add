"""`lmcache bench server`, the real one, with three gaps in its proof closed.

As it is, the tool cannot see some wrong bytes:
  - in lmcache_driven mode it does not erase the blocks before it retrieves them, so a retrieve that copies nothing
    leaves the right bytes in place and passes;
  - its checksum then covers the first rank only;
  - every rank is filled with the same random bytes, so one rank's object served to another passes.
What it sends to the server stays as it is.

One JSON line on stdin per run, {"arguments": [...], "output": file, "settle": bool}, and the tool's exit status on
stdout for each. Every run is a fork of this process: importing the packages takes far longer than a run. With "settle", it
also waits after each store until the server's /status says that the objects are there (the real server answers before).
"""

import json
import os
import sys
import traceback

import torch
from lmcache.cli.commands.bench.server_bench import helpers
from lmcache.cli.commands.bench.server_bench.client import ServerBenchClient
from lmcache.cli.main import main

from server import wait_until_settled

_allocate = helpers._allocate_kv_cache
_checksums = ServerBenchClient.compute_checksums
_store = ServerBenchClient.store
_ranks_allocated = 0


def allocate_kv_cache(*args, **kwargs) -> list[torch.Tensor]:
    global _ranks_allocated
    tensors = _allocate(*args, **kwargs)
    # With --use-mla only rank 0 stores and every rank reads that object, so there the ranks must hold the same bytes.
    if "--use-mla" not in sys.argv:
        for tensor in tensors:
            # A shift within each token: other bytes for every rank, the same amount of randomness.
            tensor.copy_(torch.roll(tensor, _ranks_allocated, dims=-1))
    _ranks_allocated += 1
    return tensors


def _block_range(client: ServerBenchClient, request, start_token: int, token_count: int) -> tuple[int, int]:
    return request.block_offset + start_token // client._block_size, token_count // client._block_size


def zero_destination(client: ServerBenchClient, request, start_token: int, token_count: int) -> None:
    first, count = _block_range(client, request, start_token, token_count)
    for worker in client._workers:
        helpers._zero_fill_client_blocks(list(worker.kv_caches.values()), first, count)


def compute_checksums(client: ServerBenchClient, request, start_token: int, token_count: int) -> list[str] | None:
    checksums = _checksums(client, request, start_token, token_count)
    if checksums is None:
        return None
    first, count = _block_range(client, request, start_token, token_count)
    for worker in client._workers:
        checksums = checksums + helpers._compute_client_checksums(
            list(worker.kv_caches.values()), first, count, client._block_size, client._chunk_size
        )
    return checksums


def store_and_settle(client: ServerBenchClient, *args, **kwargs):
    result = _store(client, *args, **kwargs)
    if result is not None:
        wait_until_settled(client._config.http_url)
    return result


def run(arguments: list[str], output: str, settle: bool) -> int:
    """Runs the tool in this process, which is a fork made for it."""
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    helpers._allocate_kv_cache = allocate_kv_cache
    ServerBenchClient.zero_destination = zero_destination
    ServerBenchClient.compute_checksums = compute_checksums
    if settle:
        ServerBenchClient.store = store_and_settle
    sys.argv = ["lmcache", "bench", "server", *arguments]
    try:
        return main() or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            status = run(**request)
            sys.stdout.flush()
            sys.stderr.flush()
            # Not exit(): what belongs to the parent must not be run or flushed twice.
            os._exit(status)
        _, wait_status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(wait_status), flush=True)
