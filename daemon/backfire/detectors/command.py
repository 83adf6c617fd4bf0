"""The detector `command`: a program that gets the picture as a file and prints regions as JSON.

The operator names the program in the configuration, but its output is not trusted. It runs without a shell,
in a process group of its own that is killed as a whole.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from backfire.advice import DOCUMENTATION
from backfire.config import Command
from backfire.detectors import Source, markup
from backfire.errors import Code, ModelError
from backfire.types import Region, Rgb

PLACEHOLDER = "{picture}"
SAID_MOST = 4096
"""The last bytes of a failing program's stderr that are kept for the message."""


class CommandDetector:
    """Runs the configured program once for each picture."""

    def __init__(self, settings: Command) -> None:
        self._settings = settings

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """The regions that the program prints; docs/guides/regions.md has the schema.

        The picture is a binary PPM file (upright, 8-bit RGB) in a private folder. Its path replaces
        `{picture}` in the arguments, or is added to them.

        Raises:
            ModelError: `Code.DETECTOR`, the program cannot be started, takes too long, prints too much or
                something else than regions, or exits with another status than 0.
        """
        height, width = image.shape[:2]
        with tempfile.TemporaryDirectory(prefix="backfire-") as folder:
            picture = Path(folder) / "picture.ppm"
            with picture.open("wb") as file:
                file.write(f"P6\n{width} {height}\n255\n".encode())
                file.write(image.tobytes())
            printed = self._run(str(picture), folder, source)
        try:
            regions = markup.read(
                printed, picture=source.name, width=width, height=height, detector="command", sized=True
            )
        except ValueError as error:
            what = f"printed something else than regions: {error}"
            raise self._failed(source, what, f"see {DOCUMENTATION}docs/guides/regions.md") from error
        return regions

    def _run(self, picture: str, folder: str, source: Source) -> bytes:
        argv = [argument.replace(PLACEHOLDER, picture) for argument in self._settings.argv]
        if argv == list(self._settings.argv):
            argv.append(picture)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            remedy = "name a program that exists and may be run"
            raise self._failed(
                source, f"cannot be started ({error.strerror})", remedy, retryable=False
            ) from error
        with process:
            try:
                printed, said = self._heard(process, source)
            finally:
                # Also after success: a child that was left behind would still use the picture's folder.
                _kill(process)
        if process.returncode != 0:
            words = said.decode("utf-8", "replace").strip() or "and said nothing"
            raise self._failed(source, f"ended with code {process.returncode} ({words})", "run it by hand")
        return printed

    def _heard(self, process: subprocess.Popen[bytes], source: Source) -> tuple[bytes, bytes]:
        """What the program wrote to stdout and stderr until it closed both and ended."""
        assert process.stdout is not None
        assert process.stderr is not None
        heard: dict[IO[bytes], bytes] = {process.stdout: b"", process.stderr: b""}
        deadline = time.monotonic() + self._settings.timeout_s
        with selectors.DefaultSelector() as selector:
            for stream in heard:
                selector.register(stream, selectors.EVENT_READ, stream)
            while selector.get_map():
                for key, _ in selector.select(max(deadline - time.monotonic(), 0)):
                    chunk = os.read(key.fd, 1 << 16)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    heard[key.data] += chunk
                heard[process.stderr] = heard[process.stderr][-SAID_MOST:]
                if len(heard[process.stdout]) > self._settings.max_bytes:
                    most = self._settings.max_bytes
                    raise self._failed(
                        source, f"printed more than {most} bytes", "raise regions.command.max_bytes"
                    )
                if time.monotonic() >= deadline:
                    raise self._too_slow(source)
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise self._too_slow(source) from None
        return heard[process.stdout], heard[process.stderr]

    def _too_slow(self, source: Source) -> ModelError:
        seconds = self._settings.timeout_s
        return self._failed(source, f"took longer than {seconds:g} s", "raise regions.command.timeout_s")

    def _failed(self, source: Source, what: str, remedy: str, *, retryable: bool = True) -> ModelError:
        message = (
            f"detector command: {self._settings.argv[0]} on {source.name} {what}; {remedy}, "
            "or take 'command' out of regions.detectors"
        )
        return ModelError(Code.DETECTOR, message, retryable=retryable)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the program and all that it started; its process group outlives it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
