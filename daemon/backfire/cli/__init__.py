"""The command `backfire`. Its commands are imported by `main`, so that Ctrl-C is heeded meanwhile."""

from __future__ import annotations

import io
import signal
import sys


def main() -> None:
    """Run the program."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the locale cannot print is no error
    # Until everything is imported, Ctrl-C ends the process as the system does it, without a traceback.
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from backfire import log
    from backfire.cli import commands

    log.setup(pretty=True)  # to stderr, because what --json prints must stay JSON
    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    commands.run()
