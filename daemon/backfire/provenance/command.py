"""A program that signs: a hardware token or a key service, whose key never comes near Backfire."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

from backfire.config import Provenance
from backfire.errors import SigningError

MOST = 4096
"""The most bytes of a signature."""
SAID_MOST = 500
"""The last bytes of what the program said on standard error that a message repeats."""


def signature(data: bytes, algorithm: str, settings: Provenance) -> bytes:
    """What the program prints for these bytes.

    Args:
        data: the bytes to be signed; the program hashes them as its algorithm demands.
        algorithm: such as `es256`, which the program finds in BACKFIRE_ALGORITHM.
        settings: name the program.

    Raises:
        SigningError: it cannot be started, failed, took too long, or printed no signature.
    """
    try:
        process = subprocess.Popen(
            settings.signer,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "BACKFIRE_ALGORITHM": algorithm},
            start_new_session=True,
        )
    except OSError as error:
        remedy = "name a program that exists and that this uid may run"
        raise _failed(settings, f"cannot be started ({error.strerror})", remedy) from error
    with process:
        try:
            printed, said = process.communicate(data, timeout=settings.timeout_s)
        except subprocess.TimeoutExpired:
            remedy = "look after it, or raise provenance.timeout_s"
            raise _failed(settings, f"took longer than {settings.timeout_s:g} s", remedy) from None
        finally:
            with suppress(ProcessLookupError):  # also what it started and left behind
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        words = said[-SAID_MOST:].decode("utf-8", "replace").strip() or "and said nothing"
        raise _failed(settings, f"ended with code {process.returncode} ({words})", "run it by hand")
    if not 0 < len(printed) <= MOST:
        raise _failed(
            settings, f"printed {len(printed)} bytes", "make it print the signature and nothing else"
        )
    return printed


def _failed(settings: Provenance, what: str, remedy: str) -> SigningError:
    return SigningError(f"provenance.signer: {settings.signer[0]} {what}; {remedy}")
