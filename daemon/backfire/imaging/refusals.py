"""Errors for pictures that are refused, shared by the readers of several formats."""

from __future__ import annotations

import re

from backfire.errors import Code, InputError


def cut_short(name: str, what: str) -> InputError:
    """The error for an incomplete file."""
    return InputError(Code.TRUNCATED, f"{name}: ends too early, expected the whole of {what}; copy it again")


def unsupported(
    name: str, what: str, remedy: str, *, expected: str = "8 or 16 bits of grey, RGB or CMYK"
) -> InputError:
    """The error for a picture that is complete but cannot be protected as it is."""
    return InputError(Code.UNSUPPORTED, f"{name}: {what}, expected {expected}; {remedy}")


def too_large(name: str, size: str, max_pixels: int) -> InputError:
    """The error for a picture that is larger than the limit; `size` says how large it is."""
    message = f"{name}: {size}, expected at most {max_pixels} pixels; shrink it or raise output.max_pixels"
    return InputError(Code.TOO_LARGE, message)


def odd_depth(name: str, depth: int) -> InputError:
    """The error for samples of a depth that cannot be written again."""
    remedy = "export it with 8 bits, or as 16-bit PNG or TIFF"
    return unsupported(name, f"has {depth} bits per sample", remedy, expected="8 or 16")


def damaged(name: str, kind: str, how: object) -> InputError:
    """The error for a file that contradicts itself; `how` may be the error of a library."""
    how = re.sub(r"\s*<_io\.BytesIO[^>]*>", "", str(how))  # libraries name the object that they read
    return InputError(
        Code.UNREADABLE,
        f"{name}: is a damaged {kind} ({how}), expected a whole one; save it again in an editor",
    )
