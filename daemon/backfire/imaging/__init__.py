"""Picture files: from bytes to pixels and back. All knowledge of file formats is in this package.

`decode` and `decode_painting` trust nothing: they recognise the format by the content, check that the file
is complete, and refuse it with a reason before anything large is allocated. `encode` writes a picture in
the format that it came in and keeps its metadata, except for anything that would show the unprotected
picture and anything that the settings strip.

Only one thread at a time may call these functions, because Pillow's size limit and Python's warning
filters are global.
"""

from backfire.imaging.data_mining import TERMS, demanding, stated
from backfire.imaging.decoding import (
    Picture,
    decode,
    decode_painting,
    flattened,
    largest_change,
    max_change,
    psnr,
)
from backfire.imaging.encoding import Encoded, encode, luma_alone
from backfire.imaging.readers import orientation
from backfire.imaging.scaling import as_saved_again, is_saved_alike, scaled

__all__ = [
    "TERMS",
    "Encoded",
    "Picture",
    "as_saved_again",
    "decode",
    "decode_painting",
    "demanding",
    "encode",
    "flattened",
    "is_saved_alike",
    "largest_change",
    "luma_alone",
    "max_change",
    "orientation",
    "psnr",
    "scaled",
    "stated",
]
