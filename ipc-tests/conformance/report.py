"""Prints one line per check and remembers how many failed."""

# What the real server is known to get wrong. Under `--server peer` these are run and shown, but not counted; a check
# that is listed here and passes counts as passed, so that a list which has become too long does no harm.
PEER_FAILURES: dict[str, str] = {}


class Report:
    def __init__(self, peer: bool):
        self.expected = PEER_FAILURES if peer else {}
        self.passed = 0
        self.failed = 0

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
            self.failed += 1
            print(f"FAIL {name}: {reason}", flush=True)
        return False

    def end(self) -> int:
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 1 if self.failed else 0
