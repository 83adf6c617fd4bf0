"""The picture files' door: bytes to pixels and back. Everything about Pillow's formats stays in here.

`decode` and `decode_painting` trust nothing: they sniff the content, check that the container is
complete, and refuse by name before anything large is allocated. `encode` writes pixels into the
kind of file they came from and keeps what the file said about itself, except what would show or
tell more than it may.

Pillow's size limit and Python's warning filters belong to the process: one thread at a time.
"""

from backfire.imaging.encoding import Encoded, encode, luma_alone
from backfire.imaging.intake import Picture, decode, decode_painting, largest_change, max_change, psnr

__all__ = [
    "Encoded",
    "Picture",
    "decode",
    "decode_painting",
    "encode",
    "largest_change",
    "luma_alone",
    "max_change",
    "psnr",
]
