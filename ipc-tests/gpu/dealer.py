"""A client's socket in Python's standard library alone: the machine with the GPU has torch, and may have nothing else.

ZMTP 3 with the NULL mechanism (RFC 23 of the ZeroMQ project), DEALER to the daemon's ROUTER, one request at a time.

    python3 dealer.py ENDPOINT OPERATION FILE

sends the request in FILE and prints its answer. File and answer are those of `src/call.rs`.
"""

import socket
import struct
import sys

MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
# Seconds until an answer is given up, as in the Rust worker.
DEADLINE = 30
# No answer to a worker comes near it. A length above is not a daemon's.
LARGEST = 64 << 20


class Dealer:
    """A connection to `tcp://host:port` or `ipc:///path`. `OSError` if it breaks, or no answer comes in time."""

    def __init__(self, endpoint: str) -> None:
        if endpoint.startswith("ipc://"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(DEADLINE)
            self.socket.connect(endpoint.removeprefix("ipc://"))
        else:
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            self.socket = socket.create_connection((host.strip("[]"), int(port)), DEADLINE)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")
        self.number = 0
        self.socket.sendall(GREETING + frame(COMMAND, READY))
        greeting = self.exactly(len(GREETING))
        if greeting[0] != 0xFF or greeting[10] < 3 or greeting[12:32].rstrip(b"\0") != b"NULL":
            raise ConnectionError(f"{endpoint} is no ZeroMQ peer without a mechanism: {greeting!r}")
        flags, body = self.frame()
        if flags != COMMAND or not body.startswith(b"\x05READY"):
            raise ConnectionError(f"{endpoint} does not shake hands: {body!r}")

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def call(self, operation: str, payload: list[bytes]) -> bytes | None:
        """Sends a request and waits for the frame of its answer, `None` if it has none."""
        self.number += 1
        # The protocol takes an operation's name wherever it takes its number: no table of them is needed here.
        name = operation.encode()
        request = [struct.pack(">BI", 0xCE, self.number), struct.pack("BB", 0xD9, len(name)) + name, *payload]
        last = len(request) - 1
        self.socket.sendall(b"".join(frame(MORE if at < last else 0, part) for at, part in enumerate(request)))
        while True:
            answer = self.message()
            if unpack(answer[0]) == self.number:
                return answer[2] if len(answer) > 2 else None

    def message(self) -> list[bytes]:
        frames: list[bytes] = []
        while True:
            flags, body = self.frame()
            if flags & COMMAND:
                # A heartbeat carries a time to live and a context, which goes back.
                if body.startswith(b"\x04PING"):
                    self.socket.sendall(frame(COMMAND, b"\x04PONG" + body[7:]))
                continue
            frames.append(body)
            if not flags & MORE:
                return frames

    def frame(self) -> tuple[int, bytes]:
        flags = self.exactly(1)[0]
        (length,) = struct.unpack(">Q", self.exactly(8)) if flags & LONG else self.exactly(1)
        if length > LARGEST:
            raise ConnectionError(f"a frame of {length} bytes")
        return flags & ~LONG, self.exactly(length)

    def exactly(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) < count:
            raise ConnectionError("the daemon has closed the connection")
        return data


def frame(flags: int, body: bytes) -> bytes:
    if len(body) < 256:
        return struct.pack("BB", flags, len(body)) + body
    return struct.pack(">BQ", flags | LONG, len(body)) + body


def unpack(data: bytes) -> object:
    """The msgpack value in a frame; `ValueError` for kinds that no answer to a worker is made of, such as maps."""
    value, end = unpack_at(data, 0)
    if end != len(data):
        raise ValueError("bytes after the value")
    return value


def unpack_at(data: bytes, at: int) -> tuple[object, int]:
    marker, at = data[at], at + 1
    if marker < 0x80:
        return marker, at
    if marker in (0xC2, 0xC3):
        return marker == 0xC3, at
    if 0xCC <= marker <= 0xCF:
        width = 1 << (marker - 0xCC)
        return int.from_bytes(data[at : at + width], "big"), at + width
    if 0x90 <= marker <= 0x9F:
        values = []
        for _ in range(marker & 15):
            value, at = unpack_at(data, at)
            values.append(value)
        return values, at
    if 0xA0 <= marker <= 0xBF:
        width, length, text = 0, marker & 31, True
    elif 0xC4 <= marker <= 0xC6 or 0xD9 <= marker <= 0xDB:
        text = marker >= 0xD9
        width = 1 << (marker - (0xD9 if text else 0xC4))
        length = int.from_bytes(data[at : at + width], "big")
    else:
        raise ValueError(f"marker 0x{marker:02x}")
    at += width
    body = data[at : at + length]
    return body.decode() if text else body, at + length


def requests(path: str) -> list[bytes]:
    """The frames in a file: each with its length before it."""
    with open(path, "rb") as file:
        data = file.read()
    frames, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return frames


def line(answer: bytes | None) -> str:
    """An answer's frame as a line."""
    if answer is None:
        return "nothing"
    try:
        value = unpack(answer)
    except ValueError:
        value = None
    match value:
        case bool():
            return f"flag {str(value).lower()}"
        case int():
            return f"count {value}"
        case str():
            return f"text {value}"
        case [bytes() as event, bool() as done]:
            return f"transfer {str(done).lower()} {event.hex()}".rstrip()
        case _:
            return f"frame {answer.hex()}"


if __name__ == "__main__":
    print(line(Dealer(sys.argv[1]).call(sys.argv[2], requests(sys.argv[3]))))
