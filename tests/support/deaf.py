"""A fault double: the pass-through daemon, which receives no file events."""

from __future__ import annotations

from backfire.files.inbox import hints
from benchmarks import passthrough


def main() -> None:
    hints._Waker.on_any_event = lambda self, event: None  # type: ignore[method-assign]
    passthrough.main()


if __name__ == "__main__":
    main()
