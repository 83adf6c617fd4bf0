"""Signed last, before hashing: receipt, verdict and `verify` are about the signed bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from backfire import imaging
from backfire.config import Settings, parse
from backfire.detectors import Sidecar, Source
from backfire.errors import Code, SigningError
from backfire.pipeline.protect import protect
from backfire.pipeline.result import Result
from backfire.pipeline.verify import verify
from backfire.provenance import signing
from backfire.service.worker.child import worked
from backfire.service.worker.protocol import Hindered, Order
from backfire.types import Verdict
from tests.support.authority import Authority, actions, active, by_camera, read
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.receipts import require_documented
from tests.support.sandbox import QUICK
from tests.unit.imaging.test_formats import EXTENSIONS, FORMAT, NAMES

MASK = Sidecar("a.mask.png", encoded(mask_picture()))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings(authority: Authority, *, found: bool = True, provenance: Any = None, **output: Any) -> Settings:
    regions = {} if found else {"regions": {"detectors": ["metadata"], "none_found": "pass"}}
    parsed = parse({"folders": {"inbox": "in"}, **QUICK, **regions, "output": output}, base=authority.folder)
    return parsed.model_copy(update={"provenance": provenance or authority.issue()})


def protected(data: bytes, asked: Settings, *, found: bool = True) -> Result:
    result = protect(data, Source("desk/a.jpg", (MASK,) if found else ()), asked)
    require_documented(result.receipt)
    assert result.receipt["output_sha256"] == hashlib.sha256(result.data).hexdigest()
    return result


def test_verdict_and_digests_are_those_of_the_signed_bytes(authority: Authority) -> None:
    data, asked = encoded(photo(), "JPEG"), settings(authority)
    result = protected(data, asked)
    told = read(result.data, "image/jpeg", authority.pem)
    assert told["validation_state"] == "Trusted"
    said = result.receipt["signature"]
    assert said["signed"]
    assert said["manifest"] == told["active_manifest"]
    assert said["signed_by"] == "CN=Picture desk,O=Gazette"
    assert 2_000 < said["bytes_added"] < 20_000
    assert said["parent"] is None
    assert "sign" in result.receipt["timings_s"]
    (change,) = actions(told)[-1]["changes"]
    shape = change["region"][0]["shape"]
    was, now = (imaging.decode(one, name="a", max_pixels=10**6) for one in (data, result.data))
    assert imaging.largest_change(was, now) == result.receipt["max_change_levels"]
    assert shape["width"] <= was.rgb.shape[1]
    assert active(told)["title"] == "a.jpg"
    again = verify(data, result.data, Source("a.jpg", (MASK,)), asked)
    assert again.receipt["output_sha256"] == result.receipt["output_sha256"]
    assert again.receipt["edits"] == result.receipt["edits"]


def test_the_changed_areas_are_where_pixels_changed(authority: Authority) -> None:
    data = encoded(photo())
    result = protected(data, settings(authority))
    told = read(result.data, "image/png")
    was, now = (imaging.decode(one, name="a", max_pixels=10**6).rgb for one in (data, result.data))
    outside = (was != now).any(axis=2)
    for change in actions(told)[-1]["changes"]:
        shape = change["region"][0]["shape"]
        left, top = int(shape["origin"]["x"]), int(shape["origin"]["y"])
        here = (slice(top, top + int(shape["height"])), slice(left, left + int(shape["width"])))
        assert outside[here].any()
        outside[here] = False
    assert not outside.any()


@pytest.mark.parametrize("kind", NAMES)
def test_every_format_is_signed_or_says_why_not(kind: str, authority: Authority) -> None:
    """Without a region, so that nothing is optimised; the picture is written anew in the format."""
    data = encoded(photo(), "GIF" if kind == "GIF" else "PNG")
    kind = "PNG" if kind == "GIF" else kind
    asked = settings(
        authority, found=False, format=FORMAT.get(kind, kind.lower()), metadata="strip-all",
        data_mining="prohibited-ai",
    )  # fmt: skip
    asked = asked.model_copy(
        update={"provenance": asked.provenance.model_copy(update={"training_mining": True})}
    )
    result = protected(data, asked, found=False)
    assert result.extension == EXTENSIONS[kind]
    said, mining = result.receipt["signature"], result.receipt["data_mining"]
    if kind in ("JPEG2000", "BMP"):
        assert said == {"signed": False, "note": f"the C2PA library cannot sign {kind}"}
    else:
        told = read(result.data, signing.MIME[kind], authority.pem)
        assert told["validation_state"] == "Trusted"
        assert actions(told)[-1]["action"] == "c2pa.transcoded"
        assert any(one["label"] == "cawg.training-mining" for one in active(told)["assertions"])
        assert "title" not in active(told)
    if kind == "BMP":
        assert mining["value"] is None
        assert mining["note"].startswith("not written: the format has no place for XMP")
    else:
        assert mining == {"value": "DMI-PROHIBITED-AIMLTRAINING", "note": None}


def test_a_picture_that_was_scaled_says_so(authority: Authority) -> None:
    result = protected(encoded(photo()), settings(authority, found=False, long_px=100), found=False)
    told = read(result.data, "image/png")
    assert [one["action"] for one in actions(told)] == ["c2pa.opened", "c2pa.resized", "c2pa.transcoded"]
    assert "from 160x128 pixels" in actions(told)[1]["description"]


def test_what_is_published_unchanged_keeps_its_own_manifest(authority: Authority) -> None:
    camera = by_camera(encoded(photo(), "JPEG"), "image/jpeg", authority.issue())
    result = protected(camera, settings(authority, found=False), found=False)
    assert result.verdict is Verdict.UNPROTECTED
    assert result.data == camera
    assert not result.receipt["signature"]["signed"]
    assert result.receipt["signature"]["note"].startswith("nothing was done to the file")
    assert result.receipt["left_out"] == []


def test_a_signed_original_becomes_the_parent_and_is_dropped_where_nobody_signs(authority: Authority) -> None:
    camera = by_camera(encoded(photo(), "JPEG"), "image/jpeg", authority.issue())
    own = read(camera, "image/jpeg")["active_manifest"]
    signed = protected(camera, settings(authority, found=False, format="png"), found=False)
    assert signed.receipt["signature"]["parent"] == {"manifest": own, "state": "Valid"}
    assert signed.receipt["left_out"] == [
        "c2pa.thumbnail.claim of the C2PA manifest: it shows the unprotected picture"
    ]
    stripped = settings(authority, found=False, metadata="strip-all")
    bare = protected(camera, stripped, found=False)
    assert bare.receipt["signature"]["parent"] is None
    assert bare.receipt["left_out"] == ["the C2PA manifest: output.metadata is strip-all"]
    unsigned = settings(authority, found=False, format="bmp")
    dropped = protected(camera, unsigned, found=False)
    assert "the C2PA manifest: its signature does not fit the published file" in dropped.receipt["left_out"]


def test_a_stricter_word_is_told_and_needs_no_new_file(authority: Authority) -> None:
    packet = (
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
        'plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"/></rdf:RDF>'
    )
    data = encoded(photo(), "JPEG", xmp=packet.encode())
    asked = settings(authority, found=False, data_mining="prohibited-genai")
    result = protected(data, asked, found=False)
    assert result.data == data
    assert result.receipt["data_mining"] == {
        "value": "DMI-PROHIBITED",
        "note": "the original's own word stays, where DMI-PROHIBITED-GENAIMLTRAINING was asked for",
    }
    plain = protected(encoded(photo(), "JPEG"), asked, found=False)
    assert plain.receipt["data_mining"]["value"] == "DMI-PROHIBITED-GENAIMLTRAINING"


class Silent:
    """The child's end of a pipe at whose other end nobody says anything."""

    def poll(self) -> bool:
        return False

    def send(self, _: object) -> None:
        pass


def test_trouble_with_the_signer_holds_up_the_picture_and_does_not_fail_it(authority: Authority) -> None:
    asked = settings(authority, found=False, format="png", provenance=authority.issue(signer=("false",)))
    with pytest.raises(SigningError) as told:
        protect(encoded(photo(), "JPEG"), Source("a.jpg"), asked)
    order = Order(1, 1, authority.folder, "a.jpg", (), asked)

    def process(*_: Any) -> Any:
        raise told.value

    outcome = worked(order, Silent(), process)  # type: ignore[arg-type]
    assert isinstance(outcome, Hindered)
    assert outcome.code == Code.SIGNING
    assert "provenance.signer: false ended with code 1" in outcome.message
