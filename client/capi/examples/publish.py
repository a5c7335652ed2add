"""A worker in Python: stores a prompt's KV and publishes the times of its copies, through ctypes.

    LMCACHE_CLIENT_LIB=target/release/liblmcache_client_c.so python3 client/capi/examples/publish.py tcp://127.0.0.1:5555
"""

import ctypes
import os
import sys

lib = ctypes.CDLL(os.environ["LMCACHE_CLIENT_LIB"])
u8, u32, u64, usize, string = (
    ctypes.c_uint8,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_size_t,
    ctypes.c_char_p,
)


class Registration(ctypes.Structure):
    _fields_ = [
        ("instance_id", u64),
        ("model_name", string),
        ("world_size", u32),
        ("rank", u32),
        ("block_size", u64),
        ("num_layers", u64),
        ("hidden_dim", u64),
        ("dtype", string),
        ("single_plane", u8),
        ("slots", u64),
    ]


class Prompt(ctypes.Structure):
    _fields_ = [
        ("request_id", string),
        ("tokens", ctypes.POINTER(u32)),
        ("token_count", usize),
        ("cache_salt", string),
        ("readers", u32),
    ]


class Record(ctypes.Structure):
    _fields_ = [
        ("kind", u32),
        ("success", u8),
        ("count", u32),
        ("transfer", u64),
        ("nanos", u64),
        ("bytes", u64),
        ("tokens", u64),
    ]


STORE_START, STORE_END, STORE = 2, 3, 1
lib.lmcache_last_error.restype = string
lib.lmcache_monotonic_ns.restype = u64
lib.lmcache_store_slots.restype = usize
lib.lmcache_store_slots.argtypes = [ctypes.c_void_p]
lib.lmcache_store_slot.argtypes = [ctypes.c_void_p, usize] + [ctypes.c_void_p] * 3
lib.lmcache_store_copied.argtypes = [ctypes.c_void_p, u64, u64]
lib.lmcache_store_commit.argtypes = [ctypes.c_void_p]
lib.lmcache_publish.argtypes = [ctypes.c_void_p, ctypes.POINTER(Record)]
lib.lmcache_client_connect.argtypes = [string, u64, u64, ctypes.c_void_p]
lib.lmcache_register.argtypes = [ctypes.c_void_p, ctypes.POINTER(Registration)]
lib.lmcache_prepare_store.argtypes = [ctypes.c_void_p, ctypes.POINTER(Prompt), u64, u64, ctypes.c_void_p]
lib.lmcache_transfer_id.argtypes = [string, u64, u64, u32, ctypes.c_void_p]
lib.lmcache_client_free.argtypes = [ctypes.c_void_p]


def check(status, what):
    if status != 0:
        raise SystemExit(f"{what}: {lib.lmcache_last_error().decode()} (status {status})")


def main():
    client = ctypes.c_void_p()
    check(lib.lmcache_client_connect(sys.argv[1].encode(), 5000, 30000, ctypes.byref(client)), "connect")
    chunk = u64()
    lib.lmcache_chunk_size.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    check(lib.lmcache_chunk_size(client, ctypes.byref(chunk)), "chunk size")
    worker = Registration(4713, b"py-example", 1, 0, 16, 2, 128, b"float16", 0, 0)
    check(lib.lmcache_register(client, worker), "register")

    count = 2 * chunk.value
    tokens = (u32 * count)(*range(count))
    prompt = Prompt(b"py-store", tokens, count, None, 1)
    store = ctypes.c_void_p()
    check(lib.lmcache_prepare_store(client, prompt, 0, count, ctypes.byref(store)), "prepare store")
    slots = lib.lmcache_store_slots(store)
    data, length, number = ctypes.c_void_p(), usize(), u64()

    began = lib.lmcache_monotonic_ns()
    moved = 0
    for slot in range(slots):
        out = (ctypes.byref(data), ctypes.byref(length), ctypes.byref(number))
        check(lib.lmcache_store_slot(store, slot, *out), "slot")
        source = bytes([number.value + 1]) * length.value
        ctypes.memmove(data, source, length.value)
        moved += length.value
    ended = lib.lmcache_monotonic_ns()
    # The library publishes these times with the commit.
    check(lib.lmcache_store_copied(store, began, ended), "copied")
    check(lib.lmcache_store_commit(store), "commit")

    # A measurement of the worker's own, under a name of its own: the daemon counts it, and knows no request of it.
    transfer = u64()
    check(lib.lmcache_transfer_id(b"py-own", 0, count, STORE, ctypes.byref(transfer)), "transfer id")
    for kind, nanos in ((STORE_START, began), (STORE_END, ended)):
        record = Record(kind, 1, slots, transfer.value, nanos, moved, count)
        if lib.lmcache_publish(client, record) != 0:
            raise SystemExit("not published")
    print(f"copied {moved} bytes in {ended - began} ns", flush=True)
    # The test looks at the worker's row on the daemon's status page before the worker goes.
    sys.stdin.read()
    lib.lmcache_client_free(client)


main()
