"""A GPU worker of the tests whose memory is torch's: stands in for `src/bin/gpu-worker.rs`.

What torch exports for its storages, and its interprocess events, are what an engine sends; nothing of LMCache is needed.
Requests leave from this process, so that the daemon has them from who owns the memory.
"""

import ctypes
import itertools
import sys

import torch

from commands import serve


def main() -> None:
    device = torch.device("cuda", int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)
    memory: dict[int, torch.Tensor] = {}
    numbers = itertools.count(1)
    events: list[torch.cuda.Event] = []
    gate: list[object] = []

    def execute(words: list[str]) -> str:
        match words:
            case ["uuid"]:
                return str(torch.cuda.get_device_properties(device).uuid).replace("-", "")
            case ["alloc", size]:
                # Numbers are given once: others may have been freed.
                number = next(numbers)
                memory[number] = torch.zeros(int(size), dtype=torch.uint8, device=device)
                torch.cuda.synchronize(device)
                shared = memory[number].untyped_storage()._share_cuda_()
                handle, offset = shared[1], shared[3]
                if len(handle) != 66 or handle[1:2] != b"c":
                    raise RuntimeError(f"torch exports {len(handle)} bytes of type {handle[1:2]!r}; unset expandable_segments")
                return f"{number} {handle[2:].hex()} {offset} {handle.hex()}"
            case ["free", number]:
                del memory[int(number)]
                torch.cuda.empty_cache()
                return "ok"
            case ["load", number, path]:
                with open(path, "rb") as file:
                    data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
                memory[int(number)].copy_(data)
                torch.cuda.synchronize(device)
                return "ok"
            case ["dump", number, path]:
                torch.cuda.synchronize(device)
                data = memory[int(number)].cpu()
                with open(path, "wb") as file:
                    # Not by way of numpy, without which torch may be installed.
                    file.write(ctypes.string_at(data.data_ptr(), data.numel()))
                return "ok"
            case ["event"]:
                event = torch.cuda.Event(interprocess=True)
                event.record(stream)
                events.append(event)
                return event.ipc_handle().hex()
            case ["wait", handle]:
                event = torch.cuda.Event.from_ipc_handle(device, bytes.fromhex(handle))
                fired = event.query()
                event.synchronize()
                return str(fired).lower()
            case ["hold"]:
                # Some seconds of work: long enough for the daemon to find the event unfired.
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(2_000_000_000)
                gate.append(None)
                return "ok"
            case ["go"]:
                stream.synchronize()
                return "ok"
            case _:
                raise RuntimeError(f"torch_worker.py cannot {words}")

    serve(execute)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    main()
