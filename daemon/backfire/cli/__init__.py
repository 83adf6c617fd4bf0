"""The command `backfire`. Its commands are imported by `main`, so that Ctrl-C is heeded meanwhile."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any


class Output(io.FileIO):
    """Standard output, which ends the program where nothing can be written to it any more.

    It is not left to `OSError`: of the errors of all files only this one has nothing to do with the pictures.
    """

    def write(self, data: Any, /) -> int:
        """Write some bytes.

        Raises:
            SystemExit: they cannot be written. A person is told why, unless it is that whoever reads has had
                enough, such as `head`.
        """
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for what is still to come
            from backfire.cli.common import OUTPUT_LOST, print_error

            if not isinstance(error, BrokenPipeError):
                try:
                    print_error(
                        f"standard output: cannot be written ({error.strerror}); write it to another place"
                    )
                except OSError:  # standard error lies on the same full disk
                    os.dup2(nowhere, sys.stderr.fileno())
            raise SystemExit(OUTPUT_LOST) from None


def _descriptor(file: io.TextIOWrapper) -> int | None:
    """The descriptor of an open file; None for one in memory, with which a program captures what we print."""
    try:
        return file.fileno()
    except io.UnsupportedOperation:
        return None


def main() -> None:
    """Run the program."""
    ours = sys.stdout
    if isinstance(ours, io.TextIOWrapper) and (descriptor := _descriptor(ours)) is not None:
        plain = Output(descriptor, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            plain if isinstance(ours.buffer, io.RawIOBase) else io.BufferedWriter(plain),
            encoding=ours.encoding,
            # A name that the locale cannot print is no error.
            errors="backslashreplace" if ours.errors == "strict" else ours.errors,
            line_buffering=ours.line_buffering,
            write_through=ours.write_through,
        )
    # Until everything is imported, Ctrl-C ends the process as the system does it, without a traceback.
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from backfire import log
    from backfire.cli import commands

    log.setup(pretty=True)  # to stderr, because what --json prints must stay JSON
    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        commands.run()
    finally:
        if sys.stdout is not None:  # as where it is closed
            sys.stdout.flush()  # here, as the interpreter tells of an error in words of its own
