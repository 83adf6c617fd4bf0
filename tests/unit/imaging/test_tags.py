"""Trees of TIFF tags are written as they were read, with a maker note at its offset."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from backfire.imaging import tags
from backfire.imaging.tags import CAMERA, GPS, MAKER_NOTE, Directory
from tests.support.images import exif_with

ORDERS = ("<", ">")


def test_tags_that_all_point_at_the_same_bytes_are_a_bomb() -> None:
    held = bytes(100_000)
    table = b"".join(struct.pack("<HHII", 40_000 + i, 7, len(held), 8) for i in range(200))
    data = b"II*\0" + struct.pack("<I", 8 + len(held)) + held + struct.pack("<H", 200) + table + bytes(4)
    with pytest.raises(ValueError, match="hold more than twice"):
        tags.parse(data)


def test_pages_that_lie_over_each_other_are_a_bomb_although_no_tag_can_be_read() -> None:
    first = 8  # each page begins four bytes behind the one before, and has 4,095 entries of an unknown type
    data = bytearray(struct.pack(">2sHI", b"MM", 42, first) + b"\x77" * (2 + 12 * 4095 + 4 * 400))
    for page in range(400):
        at = first + 4 * page
        struct.pack_into(">H", data, at, 4095)
        struct.pack_into(">I", data, at + 2 + 12 * 4095, at + 4)
    with pytest.raises(ValueError, match="hold more than twice"):
        tags.chain(bytes(data), most=10_000)


def tree(order: str = "<") -> Directory:
    gps = Directory(order).having({2: (tags.RATIONAL, [(48, 1), (12, 1), (305, 10)])})
    camera = Directory(order).having(
        {0x9003: (tags.ASCII, b"2024:05:06 07:08:09\0"), MAKER_NOTE: (tags.UNDEFINED, bytes(range(200)))}
    )
    first = Directory(order).having({0x0112: (tags.SHORT, [6]), 0xC4A5: (tags.UNDEFINED, b"PrintIM\0" * 3)})
    return replace(first, below={CAMERA: camera, GPS: gps})


def values(directory: Directory) -> dict[int, bytes]:
    found = {tag: entry.data for tag, entry in directory.entries.items()}
    for tag, below in directory.below.items():
        found |= {(tag << 16) + inner: data for inner, data in values(below).items()}
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_a_tree_is_read_as_it_was_written(order: str) -> None:
    again = tags.parse(tree(order).block())
    assert again.order == order
    assert values(again) == values(tree(order))
    assert again.number(0x0112) == 6
    assert again.below[GPS].numbers(2) == ()  # fractions are no whole numbers


@pytest.mark.parametrize("order", ORDERS)
def test_a_big_tiff_is_read_as_it_was_written(order: str) -> None:
    data = tags.header(order, 16, big=True) + tags.serialised(tree(order), 16, big=True)
    assert values(tags.parse(data)) == values(tree(order))


@pytest.mark.parametrize("gap", [400, 700, 5000])
def test_a_maker_note_stays_at_its_offset(gap: int) -> None:
    """The offsets in a note count from the start of the block; here a tag elsewhere was removed."""
    block = bytearray(tree().block())
    at = bytes(block).index(bytes(range(200)))
    block += bytes(gap - len(block)) if gap > len(block) else b""
    moved = len(block)
    block += bytes(range(200))
    place = bytes(block).index(struct.pack("<HHI", MAKER_NOTE, tags.UNDEFINED, 200))
    struct.pack_into("<I", block, place + 8, moved)
    block[at : at + 200] = bytes(200)
    parsed = tags.parse(bytes(block)).without({0xC4A5})
    written = parsed.block()
    assert written[moved : moved + 200] == bytes(range(200))
    assert values(tags.parse(written)) == values(tree().without({0xC4A5}))


def test_removing_and_adding_tags_does_not_mutate_the_tree() -> None:
    before = tree()
    assert CAMERA not in before.without({CAMERA}).below
    assert before.having({0x0112: (tags.SHORT, [1])}).number(0x0112) == 1
    assert before.number(0x0112) == 6


def test_tags_that_pillow_wrote_are_read() -> None:
    parsed = tags.parse(exif_with(6, gps=True).tobytes()[6:])
    assert parsed.number(0x0112) == 6
    assert parsed.below[CAMERA].raw(MAKER_NOTE) == b"secret of the maker"
    assert set(parsed.below) == {CAMERA, GPS}


@pytest.mark.parametrize(
    "data", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"II+\0\x08\0\0\0", b"XX*\0\x08\0\0\0\0\0"]
)
def test_malformed_data_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"TIFF structure|outside"):
        tags.parse(data)


def test_values_outside_and_loops_are_left_out() -> None:
    block = bytearray(tree().block())
    place = bytes(block).index(struct.pack("<HHI", CAMERA, tags.LONG, 1))
    struct.pack_into("<I", block, place + 8, 8)  # the camera's directory is the first one
    parsed = tags.parse(bytes(block))
    assert parsed.number(0x0112) == 6
    place = bytes(block).index(struct.pack("<HHI", 0xC4A5, tags.UNDEFINED, 24))
    struct.pack_into("<I", block, place + 8, 1 << 30)
    assert 0xC4A5 not in tags.parse(bytes(block)).entries
