"""The inbox: what is in it, what is complete, which mask belongs to which picture.

Only scans decide what is there; file events merely say that a scan is due. A file is settled when its
size, times and inode have not changed for the settle time. Callers give the time, by a monotonic clock.
Paths are bytes relative to the inbox.
"""

from backfire.files.inbox.hints import Hints
from backfire.files.inbox.mounts import NETWORK, filesystem, mount_of
from backfire.files.inbox.scan import (
    ANNOTATIONS,
    NearMiss,
    Scan,
    Signature,
    closed,
    folded,
    in_masks_folder,
    is_for_folder,
    is_mask,
    mask_names,
    near_miss,
    proof_names,
    rivals,
    scan,
    scan_beside,
    signature,
)
from backfire.files.inbox.settle import Tracker
from backfire.files.inbox.take import Taken, require_size, take

__all__ = [
    "ANNOTATIONS", "NETWORK", "Hints", "NearMiss", "Scan", "Signature", "Taken", "Tracker", "closed",
    "filesystem", "folded", "in_masks_folder", "is_for_folder", "is_mask", "mask_names", "mount_of",
    "near_miss", "proof_names", "require_size", "rivals", "scan", "scan_beside", "signature", "take",
]  # fmt: skip
