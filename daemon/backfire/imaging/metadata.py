"""The metadata that is carried from the original to the published file.

It is carried as the bytes it came in, so that unknown parts survive. Two things are not carried: anything
that shows the *unprotected* picture, which `gathering` leaves out, and tags that describe how the samples
are stored, which are written anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from backfire.imaging import photoshop, previews, tags, xmp
from backfire.imaging.tags import CAMERA, GPS, INTEROP, MAKER_NOTE, Directory

ORIENTATION = 0x0112
RESOLUTION = (0x011A, 0x011B, 0x0128)
XMP, IPTC, PHOTOSHOP, ICC = 700, 33723, 34377, 34675
LAYERS, SUBFILES, JPEG_XR = 37724, 330, 50341

STORAGE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289}
    | {290, 291, 292, 293, 317, 320, 321, 322, 323, 324, 325, SUBFILES, 338, 339, 340, 341, 347, 400}
    | {*range(512, 522), 529, 530, 531, 532, 559, LAYERS, JPEG_XR}
)
"""The tags of a TIFF's first directory that describe how samples are stored, or hold further pictures."""

PNG_COLOUR = frozenset({b"cHRM", b"gAMA", b"sRGB", b"cICP", b"mDCV", b"cLLI"})
PNG_CARRIED = PNG_COLOUR | previews.PNG_TEXT | {b"tIME", b"oFFs", b"pHYs"}

ELSEWHERE = (
    b"XML:com.adobe.xmp\0",
    b"Raw profile type exif\0",
    b"Raw profile type APP1\0",
    b"Raw profile type xmp\0",
)
"""The keywords of PNG text chunks whose content is carried as EXIF or XMP.

Raw profiles are how ImageMagick stores both, EXIF only in versions before PNG had a chunk for it.
"""

UUID_EXIF = b"JpgTiffExif->JP2"
UUID_EXIFS = (UUID_EXIF, bytes.fromhex("0537cdab9d0c4431a72afa561f2a113e"))  # the latter by Photoshop
UUID_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
ICC_HEAD = b"ICC_PROFILE\0"
UUID_MAPS = (
    bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"),  # GeoJP2
    bytes.fromhex("96a9f1f1dc98402da7aed68e34451809"),  # a world file
)
GML = b"opengis.net/gml"
EXTENDED_DIGEST = re.compile(rb"HasExtendedXMP(?:\s*=\s*[\"']|[^<>]{0,200}>\s*)([0-9A-Fa-f]{32})")
"""Finds the MD5 digest of the extended packet in the main packet."""

GEOGRAPHY = frozenset({33550, 33922, 34264, 34735, 34736, 34737})
"""GeoTIFF's tags."""

PLACES = GEOGRAPHY | {GPS, MAKER_NOTE, XMP, PHOTOSHOP}
"""Tags that say, or may say, where a picture was taken. Maker notes can hold anything."""

SIZES: dict[int | None, tuple[int, int]] = {
    None: (0x0100, 0x0101),
    CAMERA: (0xA002, 0xA003),
    INTEROP: (0x1001, 0x1002),
}
"""By directory, None for the first: the tags of width and height, such as PixelXDimension."""

XMP_SIZES = (
    {
        ("http://ns.adobe.com/exif/1.0/", "PixelXDimension"),
        ("http://ns.adobe.com/tiff/1.0/", "ImageWidth"),
    },
    {
        ("http://ns.adobe.com/exif/1.0/", "PixelYDimension"),
        ("http://ns.adobe.com/tiff/1.0/", "ImageLength"),
    },
)
"""The properties of XMP that give the width, and those that give the height."""

SUBJECTS = 0x9214, 0xA214
"""EXIF tags that name a place in the picture, in pixels: SubjectArea and SubjectLocation."""

XMP_PLACES = frozenset(
    {
        ("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "ImageRegion"),
        ("http://www.metadataworkinggroup.com/schemas/regions/", "Regions"),
        ("http://ns.microsoft.com/photo/1.2/", "RegionInfo"),
        ("http://ns.adobe.com/exif/1.0/", "SubjectArea"),
        ("http://ns.adobe.com/exif/1.0/", "SubjectLocation"),
    }
)
"""The properties of XMP that name places among the stored pixels."""

GENERAL = (
    "http://ns.adobe.com/",
    "http://cipa.jp/exif/",
    "http://iptc.org/std/",
    "http://ns.useplus.org/",
    "http://purl.org/dc/",
)
"""How the namespaces of XMP begin that hold much else beside a position."""

_RIGHTS = re.compile(r"(?i)rights|copyright|creator|author|owner|licen[cs]|credit")
"""What stays of a namespace that goes with its coordinates."""
_MACHINE_TAG = re.compile(rb"\s*([A-Za-z]\w*):\w+\s*=")
_XMP_ORIENTATION = re.compile(
    rb"(?<!\s)\s*+tiff:Orientation=[\"']\d[\"']|<tiff:Orientation>\d</tiff:Orientation>"
)

PLAIN = frozenset({1, 2}), frozenset({1, 2, 6, 13, 14, 15})
"""Colour primaries and transfer functions of H.273 that are sRGB's, nearly so, or not specified."""

C2PA = "the C2PA manifest: its signature does not fit the published file"
"""What is said in `left_out` of a manifest that is not carried."""

Part = tuple[bytes, bytes]


@dataclass(frozen=True)
class Metadata:
    """The metadata that is carried from file to file.

    Attributes:
        exif: the tags, with the orientation if the file has one.
        icc: the bytes of the colour profile.
        xmp: the bytes of the XMP packet.
        photoshop: the image resources, with the IPTC-IIM record.
        dpi: the horizontal and vertical resolution.
        cicp: of a HEIC, AVIF or PNG, the code points of its colour primaries and transfer function (H.273),
            which phones store instead of a profile.
        parts: parts that only the same format can hold, as (kind, body): JPEG segments, PNG chunks,
            JPEG 2000 boxes.
        packets: all XMP of the file, including extended packets and parts that must not be published. It
            is read for the regions it names and never written.
        extended: the extended XMP packet of a JPEG.
        data_mining: the term that the written XMP is to state of data mining, also where the packet is
            stripped, see `data_mining.demanding`; None leaves XMP as it is.
        left_out: what of the file's metadata is not carried, and why, a phrase each, for the receipt.
        turned: the orientation of the stored pixels, 1..8 as in EXIF, if the reader has turned them upright
            already: regions in `packets` refer to the stored pixels. Otherwise None.
    """

    exif: Directory = field(default_factory=Directory)
    icc: bytes | None = None
    xmp: bytes | None = None
    photoshop: bytes | None = None
    dpi: tuple[float, float] | None = None
    cicp: tuple[int, int] | None = None
    parts: tuple[Part, ...] = ()
    packets: tuple[bytes, ...] = field(default=(), repr=False, compare=False)
    turned: int | None = field(default=None, compare=False)
    extended: bytes | None = None
    data_mining: str | None = None
    left_out: tuple[str, ...] = field(default=(), compare=False)

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1..8; 1 if the file has none."""
        value = self.exif.number(ORIENTATION, 1)
        return value if 1 <= value <= 8 else 1

    @property
    def numbered(self) -> tuple[int, int] | None:
        """`cicp` where nothing else says that the colours are not sRGB's; otherwise None."""
        if self.icc is not None or self.cicp is None:
            return None
        return (
            self.cicp if any(one not in plain for one, plain in zip(self.cicp, PLAIN, strict=True)) else None
        )

    def reduced(self, policy: str) -> Metadata:
        """What `keep`, `strip-gps` or `strip-all` leaves; orientation and profile are always kept."""
        if policy == "keep":
            return self
        if policy == "strip-all":
            colour = tuple(part for part in self.parts if part[0] in PNG_COLOUR)
            kept = replace(self.bare(), icc=self.icc, cicp=self.cicp, parts=colour)
            return replace(kept, data_mining=self.data_mining, left_out=self.left_out)
        if policy == "strip-gps":
            main, extended = _placeless_packets(self.xmp, self.extended)
            lost = (self.xmp and not main) or (self.extended and not extended)
            said = ("an XMP packet: it mentions a position that cannot be taken out of it",) if lost else ()
            return replace(
                self,
                exif=_placeless(self.exif),
                xmp=main,
                extended=extended,
                left_out=(*self.left_out, *said),
                photoshop=_placeless_resources(self.photoshop or b"") or None,
                parts=tuple(part for part in map(_placeless_part, self.parts) if part is not None),
            )
        raise ValueError(f"metadata: got {policy!r}, expected keep, strip-gps or strip-all")

    def bare(self) -> Metadata:
        """Only the orientation, if it is not 1."""
        turned = Directory().having({ORIENTATION: (tags.SHORT, [self.orientation])})
        return Metadata(exif=turned if self.orientation != 1 else Directory())

    def upright(self, turned: int = 1) -> Metadata:
        """The metadata for pixels that are stored upright, without an orientation in tags or XMP.

        Args:
            turned: the orientation in which the pixels were stored before. If it is not 1, what names a place
                among them, such as the regions of people in XMP, is left out, as it would name another.
        """
        packet = None if self.xmp is None else _XMP_ORIENTATION.sub(b"", self.xmp)
        found = replace(self, exif=self.exif.without({ORIENTATION}), xmp=packet)
        return found if turned == 1 else found._unplaced()

    def _unplaced(self) -> Metadata:
        main, extended = (
            packet and xmp.without(packet, lambda one: (one.namespace, one.name) in XMP_PLACES)
            for packet in (self.xmp, self.extended)
        )
        exif, camera = self.exif, self.exif.below.get(CAMERA)
        if camera is not None and any(tag in camera.entries for tag in SUBJECTS):
            below = {**exif.below, CAMERA: camera.without(SUBJECTS)}
            exif = replace(exif, below={tag: one for tag, one in below.items() if one})
        said = ["the regions in XMP"] if (main, extended) != (self.xmp, self.extended) else []
        said += ["EXIF's subject area"] if exif != self.exif else []
        why = "they name places in the pixels as they were before they were turned upright"
        left_out = (*self.left_out, *(f"{what}: {why}" for what in said))
        return replace(self, exif=exif, xmp=main, extended=extended, left_out=left_out)

    def sized(self, width: int, height: int) -> Metadata:
        """The metadata with the size of the stored pixels, wherever they give one that is another."""
        values = {
            full_name: str(side)
            for side, names in zip((width, height), XMP_SIZES, strict=True)
            for full_name in names
        }
        main, extended = (packet and xmp.with_numbers(packet, values) for packet in (self.xmp, self.extended))
        return replace(self, exif=_sized(self.exif, width, height), xmp=main, extended=extended)

    def with_resolution(self) -> Metadata:
        """The metadata with the resolution in EXIF too, for formats that have no other place for it."""
        if self.dpi is None or RESOLUTION[0] in self.exif.entries:
            return self
        across, down = ([(round(one * 1000), 1000)] for one in self.dpi)
        values = zip(
            RESOLUTION, [(tags.RATIONAL, across), (tags.RATIONAL, down), (tags.SHORT, [2])], strict=True
        )
        return replace(self, exif=self.exif.having(dict(values)))

    def exif_block(self) -> bytes | None:
        """The tags as an EXIF block that starts with `Exif`; None if there are none."""
        exif = self.exif.without({IPTC})  # a TIFF has a tag of its own for it
        return b"Exif\0\0" + exif.block() if exif else None

    def resources(self) -> bytes | None:
        """Photoshop's image resources, with the IPTC record if a TIFF stores it in a tag."""
        iptc, block = self.exif.raw(IPTC), self.photoshop or b""
        if iptc is not None and not any(kind == photoshop.IIM for kind, _ in photoshop.resources(block)):
            block += photoshop.resource(photoshop.IIM, iptc)
        return block or None


def is_map(kind: bytes, body: bytes) -> bool:
    """Whether a part of a JPEG 2000 says where on earth each of its pixels lies, as GeoJP2 and GML do."""
    return body.startswith(UUID_MAPS) or (kind == b"xml " and GML in body)


def _sized(exif: Directory, width: int, height: int, at: int | None = None) -> Directory:
    """The tags with the size of the stored pixels where they name one, in the directory `at` and below."""
    wrong = {
        name: (tags.LONG, [side])
        for name, side in zip(SIZES.get(at, ()), (width, height), strict=False)
        if name in exif.entries and exif.number(name) != side
    }
    below = {tag: _sized(directory, width, height, tag) for tag, directory in exif.below.items()}
    return replace(exif.having(wrong), below=below)


def _placeless(exif: Directory) -> Directory:
    """The tags without those of a place, and without text that mentions one, in all directories."""
    below = {tag: _placeless(directory) for tag, directory in exif.below.items()}
    located = {tag for tag, entry in exif.entries.items() if previews.locates(entry.data)}
    found = replace(exif, below={tag: one for tag, one in below.items() if one}).without(PLACES | located)
    record = _placeless_record(exif.raw(IPTC) or b"") if IPTC in located else b""
    return found.having({IPTC: (tags.UNDEFINED, record)}) if record else found


def _placeless_packets(*packets: bytes | None) -> list[bytes | None]:
    """XMP packets without the properties of a position, None for one that mentions one elsewhere, too.

    What shares a namespace with a coordinate goes with it, unless that holds much else: names that nobody
    here knows give the other coordinates.
    """
    found = [one for packet in packets if packet for one in xmp.properties(packet)]
    named = {one.namespace for one in found if previews.names_place(one.name.encode())}
    spaces = {space for space in named if space and not space.startswith(GENERAL)}

    def unwanted(one: xmp.Property) -> bool:
        beside = one.namespace in spaces and not _RIGHTS.search(one.name)
        return beside or previews.names_place(one.name.encode()) or previews.locates(one.element)

    left = [packet and xmp.without(packet, unwanted) for packet in packets]
    return [None if packet and previews.locates(packet) else packet for packet in left]


def _placeless_record(record: bytes) -> bytes:
    """An IPTC record without the datasets of a position and machine tags that share a prefix with one."""
    parts = [(one, photoshop.value_of(one)) for one in photoshop.datasets(record)]
    gone = {value for _, value in parts if previews.locates(value)}
    prefixes = {_prefix(value) for value in gone} - {None}
    return b"".join(one for one, value in parts if value not in gone and _prefix(value) not in prefixes)


def _prefix(keyword: bytes) -> bytes | None:
    """The prefix of a machine tag such as geo:lat=48.1; None for any other keyword."""
    found = _MACHINE_TAG.match(keyword)
    return found[1].lower() if found else None


def _placeless_resources(block: bytes) -> bytes:
    """Photoshop's resources without copies of EXIF, and without what says where the picture was taken."""
    kept = []
    for kind, whole in photoshop.resources(block):
        if kind in photoshop.EXIF_COPIES:
            continue
        if not previews.locates(whole):
            kept.append(whole)
        elif kind == photoshop.IIM and (record := _placeless_record(photoshop.body_of(whole))):
            kept.append(photoshop.resource(kind, record))
    return b"".join(kept)


def _placeless_part(part: Part) -> Part | None:
    """A part, or None if it says where the picture was taken.

    Of Photoshop's resources in the text of a PNG the same stay as in a JPEG.
    """
    kind, body = part
    keyword, text = body.partition(b"\0")[0], previews.unpacked(kind, body)
    if keyword.startswith(previews.RAW_PROFILE) and text.startswith(photoshop.HEAD):
        kept = _placeless_resources(text)
        part = part if kept == text else (b"zTXt", previews.raw_profile(keyword, kept))
        return part if kept else None
    return None if _locates(*part) else part


def _locates(kind: bytes, body: bytes) -> bool:
    """Whether a part says where the picture was taken; of a PNG text, the keyword may be all that tells."""
    keyword, text = body.partition(b"\0")[0], previews.unpacked(kind, body)
    return is_map(kind, body) or previews.names_place(keyword) or previews.locates(text)
