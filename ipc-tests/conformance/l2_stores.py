"""Writes or reads an L2 store through the adapter classes of the real LMCache: l2_stores.py write|read JSON SPECS

JSON is an `--l2-adapter`. SPECS is a JSON list of objects: model, rank, group, hash, salt, length, seed. `read` prints one
line for each: `same`, `different` or `missing`; `write` prints `stored` for each. The bytes of an object follow from its
length and seed, as in ipc-tests/src/l2_suite.rs.
"""

import ctypes
import json
import sys
import time

from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class
from lmcache.v1.distributed.l2_adapters.factory import create_l2_adapter_from_registry

WAIT = 60
MASK = (1 << 64) - 1


def object_bytes(length, seed):
    state = (seed * 0x9E3779B97F4A7C15 & MASK) | 1
    out = bytearray()
    while len(out) < length:
        state ^= state << 13 & MASK
        state ^= state >> 7
        state ^= state << 17 & MASK
        out += state.to_bytes(8, "little")
    return bytes(out[:length])


class Memory:
    """As much of the peer's memory object as its adapters look at."""

    def __init__(self, data):
        self._memory = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
        self.byte_array = memoryview(self._memory).cast("B")
        self.data_ptr = ctypes.addressof(self._memory)

    def get_size(self):
        return len(self.byte_array)

    get_physical_size = get_size


def wait_for(what, poll):
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        result = poll()
        if result is not None:
            return result
        time.sleep(0.002)
    sys.exit(f"no {what} within {WAIT} s")


def main():
    mode, config, specs = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    keys = [
        ObjectKey(bytes.fromhex(s["hash"]), s["model"], s["rank"], s["group"], s["salt"])
        for s in specs
    ]
    expected = [object_bytes(s["length"], s["seed"]) for s in specs]
    adapter = create_l2_adapter_from_registry(get_l2_adapter_config_class(config["type"]).from_dict(config))
    # One task for each object: a native adapter insists on one length a task.
    for key, data in zip(keys, expected, strict=True):
        if mode == "write":
            # Named, so that it lives until the store is over: the native adapters keep its address and nothing else.
            memory = Memory(data)
            task = adapter.submit_store_task([key], [memory])
            result = wait_for("store", lambda: adapter.pop_completed_store_tasks().get(task))
            print("stored" if result.is_successful() else "failed")
            continue
        task = adapter.submit_lookup_and_lock_task([key], {})
        found = wait_for("lookup", lambda: adapter.query_lookup_and_lock_result(task))
        if not found.test(0):
            print("missing")
            continue
        memory = Memory(bytes(len(data)))
        task = adapter.submit_load_task([key], [memory])
        loaded = wait_for("load", lambda: adapter.query_load_result(task))
        print("same" if loaded.test(0) and bytes(memory.byte_array) == data else "different")
        adapter.submit_unlock([key])
    adapter.close()


main()
