"""The section `output`: what the published file is like."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backfire.config.section import Section


class Output(Section):
    """What the published file is like; see docs/guides/formats.md."""

    long_px: Annotated[int, Field(ge=64)] | None = None
    """The longer side, in pixels, at which pictures are published; larger ones are scaled down and then
    protected, since whoever scales a protected picture takes much of the effect. With null they keep their
    size."""
    format: Literal["same", "png", "jpeg", "tiff", "webp", "heic", "avif", "jpeg2000", "bmp"] = "same"
    """The format of the published file."""
    jpeg: Literal["strong", "small"] = "strong"
    """Whether a JPEG keeps all of the effect or, with some of it lost, a smaller size."""
    frames: Literal["refuse", "first"] = "refuse"
    """What becomes of a file with several pages or frames; first publishes only the first of them."""
    metadata: Literal["keep", "strip-gps", "strip-all"] = "keep"
    """Which metadata the published file keeps. With strip-gps all but coordinates, in whatever holds them;
    names of places that a person has written stay, such as IPTC's city and sub-location."""
    opaque: Literal["drop", "keep"] = "drop"
    """Whether metadata of 2 kB or more that is of an unknown kind, such as most maker notes, is dropped,
    because nobody can tell whether it holds the unprotected picture; the receipt names what was dropped."""
    data_mining: Literal["keep", "prohibited-genai", "prohibited-ai", "prohibited"] = "keep"
    """What the published file's XMP says of data mining (plus:DataMining): what the original says, or that it
    is prohibited for training generative AI, for training any AI, or altogether. A stricter word of the
    original stays, whatever `metadata` strips. It is a reservation of rights, which nothing enforces."""
    max_pixels: Annotated[int, Field(ge=1)] = 120_000_000
    """The most pixels of a picture; larger ones are refused."""
