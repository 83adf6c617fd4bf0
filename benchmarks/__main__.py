"""`python -m benchmarks NAME …`: one module a command, each with `main(arguments)`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "ingest": "benchmarks.ingest",
    "soak": "benchmarks.soak",
}


def main() -> int:
    """Run the named benchmark; its exit code is ours."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(f"usage: python -m benchmarks {{{','.join(COMMANDS)}}} [--help]", file=sys.stderr)
        return 2
    result: int = importlib.import_module(COMMANDS[name]).main(sys.argv[2:])
    return result


if __name__ == "__main__":
    sys.exit(main())
