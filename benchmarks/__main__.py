"""The command line `python -m benchmarks COMMAND …`; each command is a module with a `main(argv)`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "detect": "recall and false alarms of the detectors on real pictures",
    "cluster": "pictures a second on a Ray cluster against its workers, and what the daemon costs for each",
    "cluster_soak": "nodes, drivers and daemons killed while a cluster works: every picture once, same bytes",
    "ingest": "files taken in per second, memory, and the time until READY with a backlog",
    "page": "the status page: time to the first byte and memory with 100,000 jobs, cost for the daemon",
    "soak": "thousands of files, six writers, killed daemons: nothing is lost or published twice",
    "formats": "time and memory of reading and writing every format, compared with Pillow alone",
    "protection": "how a protection affects edits, and what remains of it after JPEG, resizing and so on",
    "paths": "in which tools edits break, by attack path and editor, and the verdicts",
    "ensembles": "what an editor's edits lose when a perturbation has to break those of others, too",
    "speed": "time to the same effect as the baseline or a strength; time and memory by picture size",
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
