"""The inbox: what is in it, what is complete, which mask belongs to which picture.

Only scans decide what is there; file events merely say that a scan is due. A file is settled when its
size, times and inode have not changed for the settle time. Callers give the time, by a monotonic clock.
Paths are bytes relative to the inbox.
"""

from backfire.files.inbox.companions import belongs, has_ending_of_picture, is_companion, is_raw, owner
from backfire.files.inbox.hints import Hints
from backfire.files.inbox.mounts import NETWORK, Mount, filesystem, is_mount_point, mounted, mounted_each
from backfire.files.inbox.names import folded
from backfire.files.inbox.scan import closed, rivals, scan, scan_beside, signature
from backfire.files.inbox.seen import Scan, Signature
from backfire.files.inbox.settle import Tracker
from backfire.files.inbox.sidecars import (
    ANNOTATIONS,
    ERROR_NOTE,
    MASK_ENDING,
    REVIEW_NOTE,
    NearMiss,
    claimants,
    in_masks_folder,
    is_for_folder,
    is_mask,
    is_proof,
    mask_names,
    near_miss,
    proof_names,
    why_unused,
)
from backfire.files.inbox.take import Taken, digest, head, is_being_written, require_size, take

__all__ = [
    "ANNOTATIONS", "ERROR_NOTE", "MASK_ENDING", "NETWORK", "REVIEW_NOTE", "Hints", "Mount", "NearMiss",
    "Scan", "Signature", "Taken", "Tracker", "belongs", "claimants", "closed", "digest", "filesystem",
    "folded", "has_ending_of_picture", "head", "in_masks_folder", "is_being_written", "is_companion",
    "is_for_folder", "is_mask", "is_mount_point", "is_proof", "is_raw", "mask_names", "mounted",
    "mounted_each", "near_miss", "owner", "proof_names", "require_size", "rivals", "scan", "scan_beside",
    "signature", "take", "why_unused",
]  # fmt: skip
