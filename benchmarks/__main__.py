"""`python -m benchmarks COMMAND …`; each command is a module with a `main(argv)`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "detect": "recall and false alarms of the detectors on real pictures",
    "ingest": "files taken in a second, memory, the time to READY with a backlog",
    "soak": "thousands of files, six writers, killed daemons: nothing lost, nothing twice",
    "formats": "reading and writing every format against bare Pillow",
    "protection": "what a protection does to edits, and what is left of it after the web",
    "speed": "the published baseline against ours to the same effect; time and memory as pictures grow",
    "figures": "every run behind docs/evaluation.md, and what they show against what was asked",
}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        lines = [f"  {command:<12} {about}" for command, about in COMMANDS.items()]
        print("usage: python -m benchmarks COMMAND …\n" + "\n".join(lines), file=sys.stderr)
        return 2
    run = importlib.import_module(f"benchmarks.{name}").main
    return int(run(sys.argv[2:]) or 0)


if __name__ == "__main__":
    raise SystemExit(main())
