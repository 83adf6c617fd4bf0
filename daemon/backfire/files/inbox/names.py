"""How the names of files that belong together are compared."""

from __future__ import annotations

import os

from backfire.types import composed


def folded(path: bytes) -> bytes:
    """A path as masks are matched: upper and lower case and both Unicode spellings of é are the same."""
    return path.lower() if path.isascii() else os.fsencode(composed(path).lower())
