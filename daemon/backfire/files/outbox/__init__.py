"""Putting files in place: outbox, archive, failed, reports. Atomic, durable, never over another file.

A file is written under a hidden name in its destination's own folder, synced, read back, and
given its final name, which fails if that is taken. The same content under that name is
adopted instead (a restart re-does a step without harm); other content gets the job's key in the name, then
its own digest.

A name is durable once its folder is synced. Steps for several jobs hand in a set, `unsynced`, which takes
up the folders instead, and `sync` it before anything relies on the names: one sync serves all of them.
"""

from backfire.files.outbox.folders import sync
from backfire.files.outbox.leaving import discard, move, remove, shift, vacant
from backfire.files.outbox.names import around, beside, hide_as, keyed, names, renamed
from backfire.files.outbox.writing import (
    confirm,
    destined,
    find,
    holds,
    place,
    put,
    replace,
)

__all__ = [
    "around", "beside", "confirm", "destined", "discard", "find", "hide_as", "holds",
    "keyed", "move", "names", "place", "put", "remove", "renamed", "replace", "shift", "sync",
    "vacant",
]  # fmt: skip
