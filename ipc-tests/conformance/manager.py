"""A service manager as far as the daemon's store of descriptors goes: it keeps what it is given (`FDSTORE=1`) and hands it
to the next start, as systemd does."""

import array
import fcntl
import os
import pathlib
import socket
import tempfile
import threading

MOST = 64
# Far from those that a process finds its sockets at.
HIGH = 300


class Manager:
    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="manager")
        self.path = pathlib.Path(self.directory.name) / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.store: dict[str, int] = {}
        self.lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            message, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(4 * array.array("i").itemsize))
            lines = message.decode().splitlines()
            name = next((line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")), "")
            sockets = array.array("i")
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    sockets.frombytes(data[: len(data) - len(data) % sockets.itemsize])
            with self.lock:
                if "FDSTOREREMOVE=1" in lines:
                    self._drop(name)
                for kept in sockets:
                    self._drop(name)
                    self.store[name] = fcntl.fcntl(kept, fcntl.F_DUPFD_CLOEXEC, HIGH)
                    os.close(kept)

    def _drop(self, name: str) -> None:
        if name in self.store:
            os.close(self.store.pop(name))

    def start(self, command: list[str]) -> tuple[list[str], dict[str, str], tuple[int, ...]]:
        """The command, its variables and the descriptors to pass, for a process that finds what is kept."""
        with self.lock:
            names, kept = list(self.store), tuple(self.store.values())
        moves = "".join(f"exec {3 + place}<&{number} {number}<&-; " for place, number in enumerate(kept))
        script = f'{moves}LISTEN_PID=$$ LISTEN_FDS={len(kept)} exec "$0" "$@"'
        variables = {
            "NOTIFY_SOCKET": str(self.path),
            "FDSTORE": str(MOST),
            "LISTEN_FDNAMES": ":".join(names),
        }
        return ["bash", "-c", script, *command], variables, kept

    def forget(self) -> None:
        """The unit is stopped: nothing is kept any more."""
        with self.lock:
            for name in list(self.store):
                self._drop(name)
