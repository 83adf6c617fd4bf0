"""`python -m benchmarks COMMAND [ARGUMENTS]`."""

from __future__ import annotations

import sys

from benchmarks import detect

COMMANDS = {"detect": detect.main}
"""Each takes the arguments after its name."""

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m benchmarks {{{','.join(COMMANDS)}}} [ARGUMENTS]")
    COMMANDS[sys.argv[1]](sys.argv[2:])
