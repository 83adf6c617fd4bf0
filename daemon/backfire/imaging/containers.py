"""Reads the containers of picture formats, and checks that a file is complete, without decoding it.

Decoding would not show that a file is incomplete: a JPEG or WebP whose end is still zeros decodes without
an error.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from mmap import mmap

ISO_BOXES = frozenset({b"ftyp", b"meta", b"mdat", b"moov", b"moof", b"free", b"skip", b"uuid", b"idat"})
"""The boxes that the top level of a HEIF or AVIF may have."""

C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
GIF_XMP = b"\x0bXMP DataXMP"
"""How the application extension of a GIF begins in which XMP lies."""
SEGMENTS = 10_000
"""The most segments of a JPEG that a quick look walks through; one of 600 MB can have as many."""
END = 4096
"""The last bytes of a JPEG 2000 in which its end marker is looked for, as other bytes may follow it."""


def is_complete(data: bytes, kind: str) -> bool:
    """Whether the file ends as its format requires. Always true of a TIFF, which `tiff.check` examines."""
    match kind:
        case "JPEG":
            return _jpeg_end(data) > 0
        case "PNG":
            return any(chunk == b"IEND" for chunk, _ in png_chunks(data))
        case "WEBP":
            return _webp_ends(data)
        case "HEIF" | "AVIF":
            return _isobmff_ends(data) and _tail(data)
        case "JPEG2000":
            return _jpeg2000_ends(data)
        case "BMP":
            return _bmp_ends(data)
        case "GIF":
            return _gif_ends(data)
    return True


def is_cut_short(data: bytes | mmap, kind: str) -> bool:
    """Whether a quick look shows that the end of a JPEG, PNG or WebP is missing.

    Where this is so, `is_complete` is false. The reverse does not hold, because this is for the daemon, which
    must not be held up: whatever the bytes are, the look costs little more than to find a word in them.
    """
    match kind:
        case "JPEG":
            return data.rfind(b"\xff\xd9", _jpeg_pixels(data)) < 0
        case "PNG":
            return data.rfind(b"IEND") < 0
        case "WEBP":
            return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False


def behind(data: bytes, kind: str) -> bytes:
    """What follows the end of a JPEG, PNG, WebP or GIF, such as a phone's video; empty for other formats."""
    match kind:
        case "JPEG":
            end = _jpeg_end(data)
        case "PNG":
            end = 8 + sum(12 + len(body) for _, body in png_chunks(data))
        case "WEBP":
            end = 8 + int.from_bytes(data[4:8], "little")
        case "GIF":
            end = next((at for kind, at, _ in gif_blocks(data) if kind == b";"), len(data))
        case _:
            end = len(data)
    return data[end:]


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Type and body of each chunk of a PNG, up to its end or the first that is incomplete."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if not kind.isalpha() or at + 12 + size > len(data):
            return
        yield kind, view[at + 8 : at + 8 + size]
        if kind == b"IEND":  # what follows, such as a phone's video, may look like a chunk
            return
        at += 12 + size


def has_c2pa(data: bytes, kind: str) -> bool:
    """Whether a file embeds a C2PA manifest, in the place that its format has for it (C2PA 2.1, A.3).

    Not for a TIFF, where it is a tag.
    """
    match kind:
        case "JPEG":
            segments = (bytes(body) for marker, body in jpeg_segments(data) if marker == b"\xeb")
            return any(body.startswith(b"JP") and b"c2pa" in body for body in segments)
        case "PNG":
            return any(chunk == b"caBX" for chunk, _ in png_chunks(data))
        case "HEIF" | "AVIF":
            return any(name == b"uuid" and body[:16] == C2PA_UUID for name, body in boxes(data))
        case "WEBP":
            return any(chunk == b"C2PA" for chunk in riff_chunks(data))
        case "GIF":
            return b"\x21\xff\x0bC2PA_GIF" in data
    return False


def riff_chunks(data: bytes) -> Iterator[bytes]:
    """The kinds of a WebP's chunks."""
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        yield data[at : at + 4]
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2


def is_lossless_webp(data: bytes) -> bool:
    """Whether the picture of a WebP, if it is not animated, was coded without losses."""
    return any(chunk == b"VP8L" for chunk in riff_chunks(data))


def sound_png(data: bytes) -> tuple[bytes, list[str]]:
    """A PNG without the ancillary chunks whose checksum is wrong, and the names of these.

    Readers ignore such chunks, as PNG (3rd edition, 13.2) allows.
    """
    kept, broken, at = [data[:8]], [], 8
    for kind, body in png_chunks(data):
        end = at + 12 + len(body)
        if (
            kind[:1].islower()
            and zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") != data[end - 4 : end]
        ):
            broken.append(kind.decode())
        else:
            kept.append(data[at:end])
        at = end
    return (b"".join([*kept, data[at:]]), broken) if broken else (data, [])


def pixelless_png(data: bytes) -> bytes:
    """The sound chunks of a PNG without those of its pixels and frames."""
    data, _ = sound_png(data)
    kept, at = [data[:8]], 8
    for kind, body in png_chunks(data):
        end = at + 12 + len(body)
        if kind not in (b"IDAT", b"acTL", b"fcTL", b"fdAT"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def jpeg_segments(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The marker's second byte and the body of each segment that precedes the pixels of a JPEG."""
    view, at = memoryview(data), 2
    while marker := _FILLED.match(data, at):
        at = marker.end()
        size = int.from_bytes(data[at : at + 2], "big")
        if marker[1] in (b"\xda", b"\xd9") or size < 2:
            return
        yield marker[1], view[at + 2 : at + size]
        at += size


def boxes(data: bytes, start: int = 0) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each box of an ISO media or JPEG 2000 file; a truncated box is last, of kind `b""`."""
    view, at = memoryview(data), start
    while at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = len(data) - at
        if size < head or at + size > len(data):
            yield b"", view[at:]
            return
        yield kind, view[at + head : at + size]
        at += size


def jp2_headers(data: bytes, kind: bytes) -> list[bytes]:
    """The bodies of the boxes of a kind in a JPEG 2000's header; none in a bare codestream."""
    if data[:1] != b"\0":
        return []
    heads = [bytes(body) for name, body in boxes(data) if name == b"jp2h"]
    return [bytes(inner) for head in heads for name, inner in boxes(head) if name == kind]


_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
"""Any marker but byte stuffing, restart markers and fill bytes."""
_FILLED = re.compile(rb"\xff++([^\x00\xd0-\xd7])")
"""The same after any number of fill bytes, as between segments (T.81, B.1.1.2)."""


def _jpeg_end(data: bytes) -> int:
    """Where a JPEG's end marker ends, 0 without one; segments are skipped, as a thumbnail has one too."""
    at = 2
    while marker := _MARKER.search(data, at):
        at = marker.end()
        if marker[1] == b"\xd9":
            return at
        if marker[1] not in (b"\x01", b"\xd8"):
            at += int.from_bytes(data[at : at + 2], "big")
    return 0


def _jpeg_pixels(data: bytes | mmap) -> int:
    """Where the segments end that precede the pixels of a JPEG, or the first `SEGMENTS` of them."""
    at = 2
    for _ in range(SEGMENTS):
        marker = _FILLED.match(data, at)
        if marker is None or marker[1] in (b"\xda", b"\xd9"):
            break
        size = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if size < 2:
            break
        at = marker.end() + size
    return at


def _isobmff_ends(data: bytes) -> bool:
    """Whether a HEIF or AVIF has all of its boxes; bytes behind them that are no box do not count."""
    kinds = []
    for kind, body in boxes(data):
        if not kind:
            return b"mdat" in kinds and bytes(body[4:8]) not in ISO_BOXES
        kinds.append(kind)
    return b"mdat" in kinds


def _jpeg2000_ends(data: bytes) -> bool:
    """Whether the codestream has its end marker, and no box is incomplete; metadata may follow it."""
    if data[:1] == b"\xff":
        return b"\xff\xd9" in data[-END:]
    found = list(boxes(data))
    whole = all(kind for kind, _ in found)
    return whole and any(kind == b"jp2c" and b"\xff\xd9" in bytes(body[-END:]) for kind, body in found)


def _gif_ends(data: bytes) -> bool:
    """Whether the blocks of a GIF lead to its trailer; what follows it does not count."""
    return any(kind == b";" for kind, _, _ in gif_blocks(data))


def gif_texts(data: bytes) -> tuple[bytes, bytes]:
    """The XMP of a GIF, and its comments, one a line; empty where it has none."""
    packet, comments = b"", bytearray()
    for kind, start, end in gif_blocks(data):
        blocks = data[start:end]
        if kind == b"!\xfe":
            comments += _gif_joined(blocks) + b"\n"
        elif kind == b"!\xff" and blocks.startswith(GIF_XMP) and not packet:
            # It lies there as it is. Readers who take its bytes for sub-blocks are led to the end by a run of
            # falling lengths behind it (XMP Specification Part 3, 1.1.2); some writers make true sub-blocks.
            packet, run, _ = blocks[len(GIF_XMP) :].rpartition(b"\1\xff\xfe\xfd")
            packet = packet if run else _gif_joined(blocks[len(GIF_XMP) :])
    return packet, bytes(comments[:-1])


def _gif_joined(blocks: bytes) -> bytes:
    """The content of sub-blocks, each of which begins with its length."""
    joined, at = bytearray(), 0
    while at < len(blocks):
        joined += blocks[at + 1 : at + 1 + blocks[at]]
        at += 1 + blocks[at]
    return bytes(joined)


def gif_blocks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Introducer and label of each block of a GIF, and where its sub-blocks start and end."""
    at = 13 + _gif_colours(data, 10)
    while at < len(data):
        introducer = data[at]
        at += 1
        if introducer == 0x3B:
            yield b";", at, at
            return
        if introducer == 0:  # some programs write one too many
            continue
        kind = data[at - 1 : at + 1] if introducer == 0x21 else b","
        if introducer == 0x21:
            at += 1
        elif introducer == 0x2C:
            at += 10 + _gif_colours(data, at + 8)
        else:
            return
        start = at
        while at < len(data) and data[at]:
            at += 1 + data[at]
        yield kind, start, at
        at += 1


def _gif_colours(data: bytes, at: int) -> int:
    """The bytes of the colour table that the flags at an offset announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _bmp_ends(data: bytes) -> bool:
    """Whether a BMP is as long as its header says, or has all its rows although that length is wrong.

    Where the length is right but the rows are not all there, the decoder finds out.
    """
    if len(data) < 26 or int.from_bytes(data[2:6], "little") <= len(data):
        return len(data) >= 26
    start, head = (int.from_bytes(data[at : at + 4], "little") for at in (10, 14))
    side = 2 if head == 12 else 4
    width = int.from_bytes(data[18 : 18 + side], "little")
    height = abs(int.from_bytes(data[18 + side : 18 + 2 * side], "little", signed=side == 4))
    bits = int.from_bytes(data[20 + 2 * side : 22 + 2 * side], "little")
    plain = head == 12 or data[30:34] in (bytes(4), b"\3\0\0\0")  # not compressed, or with bit masks
    return plain and start + (width * bits + 31) // 32 * 4 * height <= len(data)


def _webp_ends(data: bytes) -> bool:
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        return False
    return _tail(data)


def _tail(data: bytes) -> bool:
    """Whether a file does not end in zeros; an eighth of it may, since flat pictures compress to zeros."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    return zeros <= max(64, len(data) // 8)
