"""Finds metadata that shows the *unprotected* picture or says where it was taken, in any encoding.

A picture is recognised by the signature of its format or by the tables inside it, since some cameras spoil
the first byte of a preview on purpose. It is also found within base64, hexadecimal digits and UTF-16, one
within the other. Samples without any format have no signature; they are among the data that `opaque` tells
of.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

from backfire.imaging import tags

PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
RAW_PROFILE = b"Raw profile type "
MOST_TEXT = 1 << 24
"""The most bytes of a compressed text that are searched; Pillow refuses longer ones."""

LARGE = 2048
"""The bytes from which unknown data could be a recognisable picture: 26 by 26 pixels of RGB."""

SMALLEST = 256
"""The pixels that a TIFF must have to count as a picture; GeoJP2 boxes hold a TIFF of a single pixel."""

MOST_TIFFS = 64
"""The most places in one piece of data that are tried as the beginning of a TIFF, to bound the time."""

MOST_SAMPLES = 1 << 16
"""The most bytes behind the head of a PBM, PGM or PPM that are looked at."""

BLACK = 32
"""Zeros that are samples of a black picture; fewer may be the padding of a text."""

DEPTH = 3
"""How many encodings within each other are undone."""

UNBROKEN = 2 * LARGE
"""Characters without a space or punctuation from which text counts as encoded data."""

LONGEST_WORDS = 200
"""The most letters that words have on average in what counts as text; CJK has no spaces, but punctuation."""

_SIGNED = re.compile(
    rb"\xff\xd8\xff"  # JPEG, and the tables in it
    rb"|\xff\xdb\0[\x43\x84][\0-\x03]|\xff[\xc0-\xc2]\0[\x0b\x11\x14]\x08|\xff\xda\0(?:\x0c\x03|\x08\x01)"
    rb"|\x89PNG|\0\0\0\rIHDR"
    rb"|GIF8[79]a"
    rb"|RIFF.{4}WEBP|WEBPVP8[ LX]"
    rb"|\0\0.ftyp[0-9A-Za-z]{3}[0-9A-Za-z ]"  # HEIF, AVIF and videos
    rb"|jP  \r\n\x87\n|\xff\x4f\xff\x51\0"  # JPEG 2000: file and codestream
    rb"|\0\0\0\x0cJXL |\A\xff\x0a"
    rb"|BM.{4}\0{4}.{2}\0\0[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    # BMP without its header
    rb"|[\x28\x6c\x7c]\0\0\0..\0\0..(?:\0\0|\xff\xff)\x01\0[\x08\x10\x18\x20]\0[\0-\x03]\0\0\0"
    rb"|8BPS\0[\x01\x02]|v/1\x01|II\xbc\x01|qoif\0\0",
    re.DOTALL,
)
_NETPBM = re.compile(rb"\bP[1-7]\s++(?=[#\d])")
_COMMENTS = re.compile(rb"(?:#[^\n]*+(?:\n|\Z))*+")
_NETPBM_SIZE = re.compile(rb"\d++\s++\d++\s")
_DIGITS = re.compile(rb"[\d\s]{256}")
_SPOILT_JPEG = re.compile(rb"\xd8\xff[\xc4\xdb\xe0-\xef\xfe]")
_TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")

_ENTITY = rb"&#x?[0-9A-Fa-f]{1,4};"
_GAP = rb"(?:\s|" + _ENTITY + rb"|\\[nrt])"
_LETTER = rb"[A-Za-z0-9+/_-]"
# Each finds a run as group 1. A gap may hold letters or digits of its own; it is found too, without a group,
# so that no run is tried from within it: a long row of gaps would be read anew from each of them.
# At least 48 letters; then whole runs of them, since a pattern that counts takes long texts letter by letter.
_BASE64 = re.compile(
    rb"((?=" + _LETTER + rb"(?:" + _GAP + rb"*+" + _LETTER + rb"){47})"
    + _LETTER + rb"++(?:" + _GAP + rb"++" + _LETTER + rb"++)*+)|" + _ENTITY + rb"|\\[nrt]"
)  # fmt: skip
_HEX = re.compile(rb"((?:(?:\\x|0x|[%=])?[0-9A-Fa-f]{2}(?:[,:;-]|" + _GAP + rb")*+){32,}+)|" + _ENTITY)
_HEX_MARKS = re.compile(rb"\\x|0x|[%=,:;-]|" + _GAP)
_GAPS = re.compile(_GAP)

_THUMBNAILS = re.compile(rb"<(\w+):Thumbnails\b")

_QUOTE = rb"(?:[\"']|&(?:quot|apos|#34|#39);)?"
_DEGREES = rb"\s?(?:\xc2?\xb0|&(?:deg|#176);|deg(?:rees)?)"
# The last two are a prime in UTF-16.
_PRIME = rb"(?:['\"\xb4]|\xc2\xb4|\xe2\x80[\x98-\x9d\xb2\xb3]|&(?:quot|apos|#34|#39);|2\x20|\x202)"
_NUMBER = _QUOTE + rb"\s*[=:>]\s*" + _QUOTE + rb"[-+]?\d"
_HEIGHT = (
    rb"(?!\d*+(?:[.,/]\d++)*+"
    rb"(?!(?:k?m|ft|feet|met(?:er|re)s?|masl|yards?|e[-+]?\d++)(?![a-z]))[a-z])"
)
"""Holds behind the first digit of any number but one that goes on as a word, such as 8000er; units do not."""
_PLACE = re.compile(
    rb"GPS|Gps|(?<![a-z])gps"
    rb"|(?i:latitude|longt?itude|iso.?6709|georss:|geo\.position|geo:(?:lat|lon|lng|alt|pos|[-+]?\d))"
    # Shorter names are words as well, and count only with a number.
    rb"|(?i:(?:(?<![a-z])(?:lat|lon|lng)|[:.]long)" + _NUMBER + rb"|altitude" + _NUMBER + _HEIGHT + rb")"
    # ISO 6709 as videos have it, such as +48.1372+011.5761/,
    # with decimals, as telephone numbers, ISBN and dates before a slash look like it otherwise.
    rb"|(?<![\w)/.+-])[-+](?:\d\d){1,3}\.\d+[-+]\d(?:\d\d){1,3}\.\d+(?:[-+]\d+(?:\.\d+)?)?(?:CRS\w+)?/"
    # 48.137° N and 48° 08' 13.8" N; without decimals or a prime, binary data would look like it.
    rb"|\d(?:\.\d{2,}" + _DEGREES + rb"|" + _DEGREES + rb"\s?\d{1,2}(?:[.,]\d{1,9})?\s?" + _PRIME + rb")"
    rb"(?:[\d\s.,]|" + _PRIME + rb"){0,40}+[NSEWO](?![A-Za-z])"
    # 52,30.6N as XMP has it; whole seconds such as 52,30,36N count in pairs, as lists look like them.
    rb"|(?<!\d)(?<!\d[.,])\d{1,3},[0-5]?\d(?:\.\d{1,9}[NSEW]|,[0-5]?\d[NS][\s,;/]{0,4}\d{1,3},[0-5]?\d,[0-5]?\d[EW])"
    rb"(?![A-Za-z])"
)  # fmt: skip
_PLACE_NAME = re.compile(rb"(?i)lat(?:_?(?:long?|lng))?|long?|lng")
_CHARSET = re.compile(rb"\A(?:ASCII\0\0\0|UNICODE\0|JIS\0{5}|\0{8})")
_WORDS = re.compile(r"[^\s,.;:<>\"'()\[\]{}\u3000-\u303f\uff00-\uff0f\uff1a-\uff20]+")


def shows(data: bytes) -> bool:
    """Whether bytes hold a picture of any known format, as it is or encoded as text."""
    return any(_is_signed(layer) for layer in _layers(data))


def opaque(data: bytes) -> bool:
    """Whether bytes hold so much of what is neither text nor zeros that a picture could be in it.

    Large data in base64 or hexadecimal digits within text count too.
    """
    if len(data) - data.count(0) < LARGE:
        return False
    text = _text(data)
    if text is None or any(len(word) > UNBROKEN for word in _WORDS.findall(text)):
        return True
    single = data.replace(b"\0", b"")
    return any(_hides(single[start:end]) for start, end in _coded(single))


def locates(data: bytes) -> bool:
    """Whether data hold EXIF with a position, or text that mentions GPS or coordinates, in UTF-8 or UTF-16.

    Of text nothing more exact would do, since prefixes of XML namespaces are free to choose, and makers of
    cameras and drones have names of their own.
    """
    if _PLACE.search(data.replace(b"\0", b"")):
        return True
    return any(_has_position(data[at:]) for at in _tiffs(data))


def names_place(name: bytes) -> bool:
    """Whether the name of a value, without a prefix, is one of coordinates, so that it needs no number."""
    return _PLACE_NAME.fullmatch(name) is not None or _PLACE.search(name) is not None


def cut_from(xmp: bytes) -> bytes | None:
    """An XMP packet without thumbnails and other pictures; all else stays, such as the regions of people.

    None for a packet from which the picture cannot be taken out, such as one in UTF-16.
    """
    if b"\0" in xmp:
        return None if shows(xmp) else xmp
    kept, at = [], 0
    # One pattern for both tags would search the rest of the packet from each opening tag: quadratic time.
    while start := _THUMBNAILS.search(xmp, at):
        kept.append(xmp[at : start.start()])
        opened = xmp.find(b">", start.end()) + 1
        end = b"</" + start[1] + b":Thumbnails>"
        at = opened if xmp[opened - 2 : opened] == b"/>" else xmp.find(end, opened) + len(end)
        if not opened or at < opened:  # without a closing tag it is not valid XML, which its parser reports
            at = len(xmp)
    tidy = _without_coded(b"".join([*kept, xmp[at:]]), shows)
    return None if shows(tidy) else tidy


def plain(xmp: bytes) -> bytes | None:
    """An XMP packet without large encoded data that cannot be named; None if it holds such data otherwise."""
    if not opaque(xmp):
        return xmp
    tidy = xmp if b"\0" in xmp else _without_coded(xmp, _hides)
    return None if opaque(tidy) else tidy


def unpacked(kind: bytes, body: bytes) -> bytes:
    """The text of a PNG chunk, decompressed, and decoded if it is a raw profile; other bodies unchanged."""
    if kind not in PNG_TEXT:
        return body
    keyword, _, text = body.partition(b"\0")
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    text = text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text[packed:]
    if packed:
        try:
            text = zlib.decompressobj().decompress(text, MOST_TEXT)
        except zlib.error:
            return body
    if keyword.startswith(RAW_PROFILE):  # hexadecimal digits after two lines with its name and length
        try:
            return bytes.fromhex(text.strip().split(b"\n", 2)[-1].decode("ascii"))
        except ValueError:
            return text
    return text


def raw_profile(keyword: bytes, profile: bytes) -> bytes:
    """The body of a zTXt chunk with a raw profile, as ImageMagick writes it; `unpacked` is the inverse."""
    digits = re.sub(rb"(.{72})", rb"\1\n", profile.hex().encode())
    text = b"\n%s\n%8d\n%s\n" % (keyword.removeprefix(RAW_PROFILE), len(profile), digits)
    return keyword + b"\0\0" + zlib.compress(text)


def _is_signed(data: bytes) -> bool:
    """Whether bytes hold the signature of a picture, or a TIFF or JPEG that shows by its structure."""
    if _SIGNED.search(data):
        return True
    if any(_continues(data, found.start()) for found in _SPOILT_JPEG.finditer(data)):
        return True
    heads = itertools.islice(_netpbm_heads(data), MOST_TIFFS)
    if any(_holds_samples(data[end : end + MOST_SAMPLES]) for end in heads):
        return True
    return any(_is_tiff(data[at:]) for at in _tiffs(data))


def _netpbm_heads(data: bytes) -> Iterator[int]:
    """Where heads of PBM, PGM or PPM end in data."""
    read = 0
    for start in _NETPBM.finditer(data):
        at = start.end()
        if at < read:  # within the comments of the head before, so that it ends where that does
            continue
        found = _COMMENTS.match(data, at)
        read = found.end() if found else at
        if size := _NETPBM_SIZE.match(data, read):
            yield size.end()


def _holds_samples(data: bytes) -> bool:
    """Whether samples of a PBM, PGM or PPM follow its head, and not a caption on the car P1 or the like."""
    bare = data.rstrip(b"\0")
    if b"\0" in bare or len(data) - len(bare) >= BLACK or _DIGITS.match(bare):
        return True
    beyond_ascii = len(bare) - len(bare.translate(None, bytes(range(128, 256))))
    try:
        bare.decode("utf-8")
    except UnicodeDecodeError:
        if 3 * beyond_ascii > len(bare):  # more than a caption in Latin-1 has
            return True
    return _text(bare) is None


def _tiffs(data: bytes) -> Iterator[int]:
    """Where a TIFF may begin in data."""
    return (found.start() for found in itertools.islice(_TIFF.finditer(data), MOST_TIFFS))


def _has_position(data: bytes) -> bool:
    """Whether bytes begin with a TIFF, such as EXIF, that has a directory of GPS tags."""
    try:
        return tags.GPS in tags.parse(data).below
    except ValueError:
        return False


def _continues(data: bytes, at: int) -> bool:
    """Whether the segment behind the start marker of a JPEG, of which `at` is the second byte, fits."""
    after = at + 3 + int.from_bytes(data[at + 3 : at + 5], "big")
    return data[after : after + 1] == b"\xff" and data[after + 1 : after + 2] > b"\xbf"


def _is_tiff(data: bytes) -> bool:
    """Whether bytes begin with a TIFF that stores samples; a maker note's own header does not."""
    try:
        pages = tags.chain(data, most=8)
    except ValueError:
        return False
    return any(
        page.number(256) * page.number(257) >= SMALLEST and (273 in page.entries or 324 in page.entries)
        for page in pages
    )


def _layers(data: bytes, depth: int = DEPTH) -> Iterator[bytes]:
    """Bytes as they are, and what text in them decodes to."""
    yield data
    if depth:
        for inner in _decoded(data):
            yield from _layers(inner, depth - 1)


def _decoded(data: bytes) -> Iterator[bytes]:
    """What bytes decode to: bytes in Latin-1 that were written as UTF-8, and encoded runs of text."""
    text = data.replace(b"\0", b"")  # which turns UTF-16 into single bytes
    if not text.isascii():
        with contextlib.suppress(UnicodeError):
            yield data.decode("utf-8").encode("latin-1")
    for start, end in _coded(text):
        yield from _readings(text[start:end])


def _coded(text: bytes) -> Iterator[tuple[int, int]]:
    """Where text may be encoded data."""
    for pattern in (_HEX, _BASE64):
        yield from (found.span(1) for found in pattern.finditer(text) if found[1])


def _readings(run: bytes) -> Iterator[bytes]:
    """What an encoded run may mean; it may begin within a group, because words around it look the same."""
    if _HEX.fullmatch(run):
        digits = _HEX_MARKS.sub(b"", run)
        for phase in range(2):
            yield binascii.unhexlify(digits[phase : phase + (len(digits) - phase) // 2 * 2])
        return
    letters = _GAPS.sub(b"", run).translate(bytes.maketrans(b"-_", b"+/"))
    for phase in range(4):
        yield base64.b64decode(letters[phase : phase + (len(letters) - phase) // 4 * 4])


def _hides(run: bytes) -> bool:
    """Whether an encoded run holds large data that are no text.

    Words between spaces look like base64 as well; encoded lines are longer.
    """
    if not _HEX.fullmatch(run) and len(run) < 40 * (1 + len(_GAPS.findall(run))):
        return False
    return all(opaque(reading) for reading in _readings(run))


def _without_coded(text: bytes, unwanted: Callable[[bytes], bool]) -> bytes:
    for pattern in (_HEX, _BASE64):
        # A run of base64 ends in padding, which goes with it.
        padded = re.compile(rb"(?:" + pattern.pattern + rb")(?:" + _GAP + rb"|=)*+")
        text = padded.sub(lambda found: b"" if found[1] and unwanted(found[1]) else found[0], text)
    return text


def _text(data: bytes) -> str | None:
    """Bytes as text, if that is what they are; None otherwise."""
    body = _CHARSET.sub(b"", data)
    wide = ("utf-16-le", "utf-16-be") if b"\0" in body or data.startswith(b"UNICODE") else ()
    for encoding in (*wide, "utf-8", "latin-1"):
        try:
            text = body.decode(encoding).strip("\0")
        except UnicodeDecodeError:
            continue
        # Each kind of letter is looked at once: texts may have millions of letters.
        kinds = Counter(text).items()
        readable = sum(count for letter, count in kinds if letter.isprintable() or letter.isspace())
        written = sum(map(len, words := _WORDS.findall(text)))
        if readable >= 0.98 * len(text) and written <= LONGEST_WORDS * len(words):
            return text
    return None
