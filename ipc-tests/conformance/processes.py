"""Child processes that cannot outlive the run, and waits that cannot last for ever."""

import ctypes
import json
import os
import pathlib
import re
import selectors
import signal
import socket
import subprocess
import time
import typing

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


SHM = pathlib.Path("/dev/shm")


class Failure(Exception):
    """A check cannot go on; the message is the reason that is printed."""


def until(condition: typing.Callable[[], typing.Any], what: str, seconds: float) -> typing.Any:
    """Waits for a true value; the pause only keeps the loop from eating the core the other process needs."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; all are held together so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _die_with_parent() -> None:
    # Should the runner be killed the hard way, the kernel still ends its direct children.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def remove_worker_segments(log: pathlib.Path) -> None:
    """Removes the shared memory that a worker, ended by force, could not; its log names each segment it made."""
    for name in set(re.findall(r"lmcache_kv_\d+_\d+", log.read_text(errors="replace"))):
        (SHM / name).unlink(missing_ok=True)


class Process:
    """A child in a session of its own, so that one signal reaches the processes it has started as well."""

    _alive: list["Process"] = []

    def __init__(
        self,
        command: list[str],
        log: pathlib.Path,
        env: dict[str, str],
        pipes: bool = False,
    ):
        self.log = log
        # Appending: a server that is restarted continues its own log.
        with open(log, "ab") as sink:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else sink,
                stderr=sink,
                env=env,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        Process._alive.append(self)

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        try:
            os.killpg(self.popen.pid, number)
        except ProcessLookupError:
            pass

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None if it is still running after that time."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self, grace: float = 15.0) -> None:
        """Ends the whole group: politely first, and whatever is left of it by force."""
        if self.running:
            self.signal(signal.SIGTERM)
            self.wait(grace)
        self.signal(signal.SIGKILL)
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        if self in Process._alive:
            Process._alive.remove(self)

    @classmethod
    def end_all(cls) -> None:
        for process in list(cls._alive):
            process.end(grace=2.0)


class Conversation(Process):
    """A child that answers each JSON line on its stdin with one on its stdout."""

    def __init__(self, command: list[str], log: pathlib.Path, env: dict[str, str]):
        super().__init__(command, log, env, pipes=True)
        self._buffer = b""

    def tell(self, message: typing.Any, what: str) -> None:
        try:
            self.popen.stdin.write(json.dumps(message).encode() + b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            raise Failure(f"{what}: the process is gone (log: {self.log.name})") from None

    def hear(self, what: str, seconds: float) -> typing.Any:
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self.popen.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise Failure(f"{what}: no answer after {seconds:g} s (log: {self.log.name})")
                part = os.read(self.popen.stdout.fileno(), 1 << 20)
                if not part:
                    raise Failure(f"{what}: the process ended (log: {self.log.name})")
                self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def ask(self, message: typing.Any, what: str, seconds: float) -> typing.Any:
        self.tell(message, what)
        return self.hear(what, seconds)
