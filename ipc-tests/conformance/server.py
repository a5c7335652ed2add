"""The server under test: lmcached, or the real `lmcache server` when the harness itself is being proven."""

import json
import mmap
import os
import pathlib
import signal
import typing
import urllib.error
import urllib.request

from processes import SHM, Failure, Process, free_ports, until

HERE = pathlib.Path(__file__).parent
# The Python server imports torch before it listens; on a busy machine that alone takes most of a minute.
START_DEADLINE = 120.0
SETTLE_DEADLINE = 20.0
RANDOM_TILE = 16 << 20


def wait_until_settled(url: str) -> None:
    """Waits until no object is half written or held by a reader.

    The real server answers a server-driven `store` when the copy is queued, so a lookup sent right after the reply
    may miss what was just stored. lmcached answers when the object is there; for it, this must not be needed.
    """

    def settled() -> bool:
        with urllib.request.urlopen(url + "/status", timeout=10) as reply:
            l1 = json.load(reply)["storage_manager"]["l1_manager"]
        return not (l1["staging_object_count"] or l1["write_locked_count"] or l1["read_locked_count"])

    until(settled, "all objects written and released", SETTLE_DEADLINE)


class Server:
    def __init__(self, kind: str, binary: str, venv: pathlib.Path, log: pathlib.Path, extra: typing.Sequence[str] = ()):
        self.peer = kind == "peer"
        self.log = log
        self.port, self.http_port, metrics_port = free_ports(3)
        self.shm_name = f"conf{os.getpid()}"
        self.pool = SHM / f"lmcache_l1_pool_{self.shm_name}"
        # One list for every start: a restart must use the very same command line.
        self.command = [str(venv / "bin" / "lmcache"), "server"] if self.peer else [binary]
        self.command += [
            "--host", "127.0.0.1", "--port", str(self.port), "--http-port", str(self.http_port),
            "--prometheus-port", str(metrics_port), "--l1-size-gb", "2", "--eviction-policy", "LRU",
            "--shm-name", self.shm_name, "--metrics-sample-rate", "1.0",
        ]  # fmt: skip
        if self.peer:
            # Without these two it serves one transfer mode only and does not share its pool with the workers.
            self.command += ["--supported-transfer-mode", "auto", "--no-l1-use-lazy"]
        self.command += extra
        self.env = os.environ | {
            "LMCACHE_TRACK_USAGE": "false",
            "LMCACHE_DISABLE_BANNER": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONHASHSEED": "0",
        }
        self.process: Process | None = None
        # Under lmcached-keeper, which keeps its connections over a crash and starts it again.
        self.kept = False
        # Seconds by which each of its starts comes later.
        self.late = 0.0
        self.killed: int | None = None
        self.kills = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def start(self) -> "Server":
        if self.kept and self.running:
            until(lambda: self._daemon() not in (None, self.killed), "another daemon", START_DEADLINE)
        else:
            keeper = [str(pathlib.Path(self.command[0]).with_name("lmcached-keeper"))] if self.kept else []
            late = [str(HERE / "late.sh"), str(self.late)] if self.late else []
            self.process = Process(keeper + late + self.command, self.log, self.env)
        until(self._ready, f"the server's /healthcheck (log: {self.log.name})", START_DEADLINE)
        return self

    def _daemon(self) -> int | None:
        """The process of the daemon that the keeper has started."""
        keeper = self.process.popen.pid
        try:
            children = pathlib.Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def _ready(self) -> bool:
        if not self.process.running:
            raise Failure(f"the server ended with status {self.process.popen.returncode} (log: {self.log.name})")
        try:
            with urllib.request.urlopen(self.url + "/healthcheck", timeout=2) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """What an out-of-memory kill does: no handler runs, nothing is cleaned up."""
        if self.kept:
            self.killed = self._daemon()
            if self.killed is None:
                raise Failure(f"there is no daemon to kill (log: {self.log.name})")
            os.kill(self.killed, signal.SIGKILL)
            self.kills += 1
            return
        self.process.signal(signal.SIGKILL)
        self.process.end()
        self.process = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    def require_not_crashed(self) -> None:
        """Being down because a check has killed it is fine here; ending by itself never is."""
        if self.process and not self.process.running:
            raise Failure(f"the server ended by itself, status {self.process.popen.returncode} (log: {self.log.name})")
        ends = self.log.read_text(errors="replace").count("the daemon ended;")
        if ends > self.kills:
            raise Failure(f"the daemon ended {ends - self.kills} times by itself, and the keeper started it again (log: {self.log.name})")

    def stop(self) -> None:
        if self.process:
            self.process.end()
            self.process = None
        # lmcached keeps its pool on purpose and the peer leaves it behind when it is killed. The next part of the
        # run must not find it.
        for leftover in SHM.glob(f"*{self.shm_name}*"):
            leftover.unlink(missing_ok=True)

    def settle(self) -> None:
        if self.peer:
            wait_until_settled(self.url)

    def clear(self) -> None:
        request = urllib.request.Request(
            self.url + "/cache/clear",
            data=json.dumps({"force": True}).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            if reply.status != 200:
                raise Failure(f"POST /cache/clear answered {reply.status}")

    def metrics(self, having: str = "") -> dict[str, float]:
        """Each metric of /metrics by its name, its series that have the text `having` added up."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        totals: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#") and having in line:
                series, value = line.rsplit(" ", 1)
                name = series.split("{", 1)[0]
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    def overwrite_pool(self) -> None:
        """Replaces the whole pool: whatever the server hands out afterwards is garbage.

        Random bytes, except that the exponent's top bit of every float32 is cleared: all values then are finite and
        small. The infinities and NaNs of plain random bytes stay behind in the engine's blocks and spoil its later,
        unrelated requests, and they would make this control easier than it should be.
        """
        if not self.pool.exists():
            raise Failure(f"there is no {self.pool.name} in {SHM} to overwrite")
        tile = bytearray(os.urandom(RANDOM_TILE))
        tile[3::4] = tile[3::4].translate(bytes(byte & 0xBF for byte in range(256)))
        with open(self.pool, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            for start in range(0, len(memory), RANDOM_TILE):
                end = min(start + RANDOM_TILE, len(memory))
                memory[start:end] = tile[: end - start]
