"""Prints one line per check and remembers how many failed."""

# What the real server is known to get wrong. Under `--server peer` these are run and shown, but not counted; a check
# that is listed here and passes counts as passed, so that a list which has become too long does no harm.
_ONE_LOCK = "a lookup locks an object for one reader, so the second rank's retrieve fails unless it overlaps the first"
_OTHER_SHAPE = "keys do not say what the object looks like, and a hit of another size fails the retrieve"
_EMPTY_POOL = "its pool is unlinked at the start"
_NOT_NOTICED = "nothing tells the engine that the server has forgotten it"
PEER_FAILURES = (
    {f"bench.{mode}.mla.tp2": _ONE_LOCK for mode in ("engine_driven", "lmcache_driven")}
    | {f"bench.{mode}.same-keys-more-layers.tp1": _OTHER_SHAPE for mode in ("engine_driven", "lmcache_driven")}
    | {f"bench.{mode}.same-keys-other-heads.tp2": _OTHER_SHAPE for mode in ("engine_driven", "lmcache_driven")}
    | {f"restart.{mode}.outage.pool-survives": _EMPTY_POOL for mode in ("engine_driven", "lmcache_driven")}
    | {f"restart.lmcache_driven.fast.{what}": _NOT_NOTICED for what in ("registers-again", "stores-again")}
    | {"restart.lmcache_driven.fast.pool-survives": _EMPTY_POOL}
)


class Report:
    def __init__(self, peer: bool):
        self.expected = PEER_FAILURES if peer else {}
        self.passed = 0
        self.failures: list[str] = []

    def check(self, name: str, problems: list[str]) -> bool:
        """Records one check; no problems means that it passed."""
        if not problems:
            self.passed += 1
            print(f"ok {name}", flush=True)
            return True
        reason = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        if name in self.expected:
            print(f"expected peer failure {name}: {self.expected[name]} ({reason})", flush=True)
        else:
            self.failures.append(f"FAIL {name}: {reason}")
            print(self.failures[-1], flush=True)
        return False

    def end(self) -> int:
        # Once more what failed: of a long log often only the end is kept.
        for line in self.failures:
            print(line, flush=True)
        print(f"{self.passed} passed, {len(self.failures)} failed", flush=True)
        return 1 if self.failures else 0
