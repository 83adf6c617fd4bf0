"""Test data for detectors: XMP annotations, an ONNX network, external programs, lettering and logos."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks import marks

XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"
 xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#" xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#"
 xmlns:MP="http://ns.microsoft.com/photo/1.2/" xmlns:MPRI="http://ns.microsoft.com/photo/1.2/t/RegionInfo#"
 xmlns:MPReg="http://ns.microsoft.com/photo/1.2/t/Region#"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">{}</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


def xmp(inner: str) -> bytes:
    return XMP.format(inner).encode()


def mwg(*areas: str, applied: str = "", kind: str = "Face") -> str:
    """XMP regions of the MWG in the form that Lightroom writes."""
    items = "".join(
        f'<rdf:li><rdf:Description mwg-rs:Name="A. Person" mwg-rs:Type="{kind}"><mwg-rs:Area {area}/>'
        "</rdf:Description></rdf:li>"
        for area in areas
    )
    dimensions = f"<mwg-rs:AppliedToDimensions {applied}/>" if applied else ""
    return (
        f'<mwg-rs:Regions rdf:parseType="Resource">{dimensions}<mwg-rs:RegionList><rdf:Bag>{items}</rdf:Bag>'
        "</mwg-rs:RegionList></mwg-rs:Regions>"
    )


def area(x: float, y: float, w: float, h: float) -> str:
    return f'stArea:x="{x}" stArea:y="{y}" stArea:w="{w}" stArea:h="{h}" stArea:unit="normalized"'


def program(folder: Path, code: str) -> tuple[str, ...]:
    """The command line that runs `code` as a Python program."""
    path = folder / "program.py"
    path.write_text(code)
    return (sys.executable, "-I", str(path))


def network(path: Path, rows: np.ndarray, *, side: int = 64, output: str = "boxes") -> Path:
    """An ONNX network that takes 1,3,side,side and always returns `rows`; its protobuf is written by hand."""

    def field(number: int, content: bytes | int) -> bytes:
        if isinstance(content, int):
            return _varint(number << 3) + _varint(content)
        return _varint(number << 3 | 2) + _varint(len(content)) + content

    def value(name: str, shape: tuple[int, ...]) -> bytes:
        dimensions = b"".join(field(1, field(1, size)) for size in shape)
        return field(1, name.encode()) + field(2, field(1, field(1, 1) + field(2, dimensions)))

    floats = rows.astype("<f4")
    tensor = b"".join(field(1, size) for size in floats.shape) + field(2, 1) + field(8, b"rows")
    tensor += field(9, floats.tobytes())
    node = field(1, b"rows") + field(2, output.encode()) + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(5, tensor)
    graph += field(11, value("images", (1, 3, side, side))) + field(12, value(output, floats.shape))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13)))
    return path


def _varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return struct.pack(f"{len(groups) + 1}B", *groups, number)


def lettered(image: np.ndarray, text: str, at: tuple[int, int], size: int) -> np.ndarray:
    """The picture with a line of text on a light rectangle."""
    picture = Image.fromarray(image)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox(at, text, font=font)
    draw.rectangle((left - 8, top - 8, right + 8, bottom + 8), fill=(240, 240, 235))
    draw.text(at, text, fill=(20, 20, 20), font=font)
    return np.asarray(picture)


def logo(side: int = 320) -> Image.Image:
    """The benchmarks' logo of a fictitious firm, on a transparent background."""
    return marks.logo().resize((side * 3 // 2, side), Image.Resampling.LANCZOS)
