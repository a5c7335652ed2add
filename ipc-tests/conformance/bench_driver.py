"""`lmcache bench server`, the real one, with three gaps in its proof closed. Arguments: those of that command.

As it is, the tool cannot see some wrong bytes:
  - in lmcache_driven mode it does not erase the blocks before it retrieves them, so a retrieve that copies nothing
    leaves the right bytes in place and passes;
  - its checksum then covers the first rank only;
  - every rank is filled with the same random bytes, so one rank's object served to another passes.
What it sends to the server stays as it is. With --settle, it also waits after each store until the server's
/status says that the objects are there (the real server answers before they are).
"""

import sys

import torch
from lmcache.cli.commands.bench.server_bench import helpers
from lmcache.cli.commands.bench.server_bench.client import ServerBenchClient

from server import wait_until_settled

# With --use-mla only rank 0 stores and every rank reads that object, so there the ranks must hold the same bytes.
RANKS_SHARE_ONE_OBJECT = "--use-mla" in sys.argv

_allocate = helpers._allocate_kv_cache
_checksums = ServerBenchClient.compute_checksums
_store = ServerBenchClient.store
_ranks_allocated = 0


def allocate_kv_cache(*args, **kwargs) -> list[torch.Tensor]:
    global _ranks_allocated
    tensors = _allocate(*args, **kwargs)
    if not RANKS_SHARE_ONE_OBJECT:
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


if __name__ == "__main__":
    helpers._allocate_kv_cache = allocate_kv_cache
    ServerBenchClient.zero_destination = zero_destination
    ServerBenchClient.compute_checksums = compute_checksums
    if "--settle" in sys.argv:
        sys.argv.remove("--settle")
        ServerBenchClient.store = store_and_settle

    from lmcache.cli.main import main

    sys.argv[0:1] = ["lmcache", "bench", "server"]
    sys.exit(main())
