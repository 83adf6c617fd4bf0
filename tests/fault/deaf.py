"""A fault double: the pass-through daemon to which no file event is ever delivered."""

from __future__ import annotations

from benchmarks import passthrough
from daemon.inbox import hints


def main() -> None:
    hints._Waker.on_any_event = lambda self, event: None  # type: ignore[method-assign]
    passthrough.main()


if __name__ == "__main__":
    main()
