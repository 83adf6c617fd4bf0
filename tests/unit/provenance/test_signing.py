"""Files are signed in every format that can be, and read back with and without a trusted anchor."""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backfire.config import Provenance
from backfire.errors import Code, JobError, SigningError
from backfire.imaging import containers, decode, encode, previews
from backfire.provenance import Area, Original, Policy, Statement, Work, credentials, signing
from backfire.types import Box
from tests.support.authority import STAMPS, Authority, Wanted, actions, active, by_camera, read
from tests.support.images import file, scene
from tests.support.pictures import encoded, photo
from tests.support.sandbox import wait_for
from tests.unit.imaging.test_data_mining import RDF
from tests.unit.imaging.test_formats import DEEP, FORMAT

WORK = Work((Area(Box(10, 20, 60, 70), ("face", "logo")),), 8, "implant", 40)
STATEMENT = Statement("a.jpg", WORK)
FORBIDDEN = re.compile(r"protect|watermark|compositeWithTrained|trainedAlgorithmicMedia", re.IGNORECASE)
ACCEPTED = ("Valid", "Trusted")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def photograph(kind: str = "JPEG") -> bytes:
    return encoded(photo(), kind)


def written(kind: str) -> bytes:
    """A file of a format as the product writes it."""
    taken = decode(file(scene(), "PNG"), name="a", max_pixels=10**6)
    return encode(taken, taken.rgb, levels=6, format=FORMAT.get(kind, kind.lower())).data


def deep(make: str) -> tuple[bytes, str]:
    """A file with more than 8 bits, or stored oddly, as the product writes it again."""
    taken = decode(bytes(DEEP[make]()), name="a", max_pixels=10**6)
    again = encode(taken, taken.rgb, levels=6)
    return again.data, again.format


SIGNABLE = [make for make in DEEP if make.split()[0] not in ("jp2", "j2k")]


def require_signed(data: bytes, kind: str, authority: Authority) -> None:
    """Sign a file, and have it read with the anchor, without, and with a byte of its pixels changed."""
    mime, provenance = signing.MIME[kind], authority.issue()
    signed = signing.sign(data, kind, STATEMENT, Original(data, kind, "a"), provenance).data
    assert read(signed, mime, authority.pem)["validation_state"] == "Trusted"
    assert read(signed, mime)["validation_state"] == "Valid"
    before, after = (decode(one, name="a", max_pixels=10**6) for one in (data, signed))
    assert np.array_equal(before.samples, after.samples)
    assert (before.alpha is None) == (after.alpha is None)
    assert before.metadata == after.metadata
    middle = len(data) * 2 // 3
    at = signed.index(data[middle : middle + 24]) + 12
    spoilt = signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]
    assert read(spoilt, mime, authority.pem)["validation_state"] == "Invalid"


@pytest.mark.parametrize("kind", signing.MIME)
def test_every_format_is_trusted_with_the_anchor_and_a_changed_byte_is_found(
    kind: str, authority: Authority
) -> None:
    require_signed(written(kind), kind, authority)


@pytest.mark.parametrize("make", SIGNABLE)
def test_deep_and_odd_files_are_signed_too(make: str, authority: Authority) -> None:
    require_signed(*deep(make), authority)


def test_these_are_all_that_the_library_can_sign() -> None:
    """A format that a new version can sign is to be signed, and the guide to be changed."""
    c2pa: Any = pytest.importorskip("c2pa")
    can = set(c2pa.Builder.get_supported_mime_types())
    assert set(signing.MIME.values()) <= can
    assert not {"image/jp2", "image/jpx", "image/j2k", "image/bmp", "image/x-ms-bmp"} & can


def test_the_manifest_says_what_was_done_and_claims_no_effect(authority: Authority) -> None:
    data = photograph()
    signed = signing.sign(data, "JPEG", STATEMENT, Original(data, "JPEG", "was.jpg"), authority.issue())
    told = read(signed.data, "image/jpeg")
    manifest = active(told)
    assert manifest["label"] == signed.manifest
    assert manifest["title"] == "a.jpg"
    opened, enhanced = actions(told)
    assert opened["action"] == "c2pa.opened"
    assert enhanced["action"] == "c2pa.enhanced"
    assert enhanced["digitalSourceType"].endswith("/algorithmicallyEnhanced")
    assert enhanced["softwareAgent"]["name"] == "Backfire"
    assert "no pixel by more than 8 of 255 levels" in enhanced["description"]
    assert enhanced["parameters"]["org.backfire"] == {
        "method": "implant", "epsilon_levels": 8, "iterations": 40,
    }  # fmt: skip
    (change,) = enhanced["changes"]
    assert change["region"][0]["shape"] == {
        "type": "rectangle", "unit": "pixel", "origin": {"x": 10, "y": 20}, "width": 50, "height": 50,
    }  # fmt: skip
    assert change["description"].endswith(": face, logo")
    (parent,) = manifest["ingredients"]
    assert (parent["relationship"], parent["title"]) == ("parentOf", "was.jpg")
    assert "thumbnail" not in manifest
    assert "thumbnail" not in parent
    assert not FORBIDDEN.search(json.dumps(manifest))
    assert [one["label"] for one in manifest["assertions"]] == ["c2pa.actions.v2"]
    assert all(one["created"] for one in manifest["assertions"]), "they are the signer's own"


def test_a_file_that_was_only_written_anew_says_so(authority: Authority) -> None:
    data = photograph()
    statement = Statement(None, None, "DMI-PROHIBITED-AIMLTRAINING")
    told = read(
        signing.sign(data, "JPEG", statement, Original(data, "JPEG", None), authority.issue()).data,
        "image/jpeg",
    )
    _, again = actions(told)
    assert again["action"] == "c2pa.transcoded"
    assert "digitalSourceType" not in again
    assert "title" not in active(told)
    (mining,) = [one for one in active(told)["assertions"] if one["label"] == "cawg.training-mining"]
    assert mining["data"]["entries"] == {
        "cawg.ai_generative_training": {"use": "notAllowed"}, "cawg.ai_training": {"use": "notAllowed"},
    }  # fmt: skip


@pytest.mark.parametrize("purpose", credentials.PURPOSES)
def test_every_purpose_signs(purpose: str, authority: Authority) -> None:
    data = photograph()
    provenance = authority.issue(Wanted(purposes=(purpose,)))
    signed = signing.sign(data, "JPEG", STATEMENT, Original(data, "JPEG", "a"), provenance).data
    told = read(signed, "image/jpeg", authority.pem, purposes=credentials.PURPOSES)
    assert told["validation_state"] == "Trusted"


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "ed25519"])
def test_every_kind_of_key_signs(kind: str, authority: Authority) -> None:
    data = photograph()
    signed = signing.sign(
        data, "JPEG", STATEMENT, Original(data, "JPEG", "a"), authority.issue(Wanted(kind=kind))
    )
    assert read(signed.data, "image/jpeg", authority.pem)["validation_state"] == "Trusted"


# ---- what the original brings along


def store_of(data: bytes) -> bytes:
    """The manifests of a JPEG."""
    return b"".join(bytes(body) for marker, body in containers.jpeg_segments(data) if marker == b"\xeb")


def resigned(data: bytes, kind: str, authority: Authority, policy: Policy = signing.ALL) -> signing.Signed:
    return signing.sign(
        photograph(), "JPEG", STATEMENT, Original(data, kind, "was"), authority.issue(), policy
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_signed_original_keeps_its_manifest_as_parent(kind: str, authority: Authority) -> None:
    camera = by_camera(photograph(kind), signing.MIME[kind], authority.issue())
    own = read(camera, signing.MIME[kind])
    assert "thumbnail" in active(own)
    signed = resigned(camera, kind, authority)
    told = read(signed.data, "image/jpeg", authority.pem)
    (parent,) = active(told)["ingredients"]
    assert parent["active_manifest"] == own["active_manifest"] == signed.parent.manifest
    assert own["active_manifest"] in told["manifests"]
    assert signed.parent.state == "Valid"
    assert told["validation_state"] in ACCEPTED


def test_no_thumbnail_of_the_original_is_published(authority: Authority) -> None:
    """Neither the camera's nor those that an editor made of the picture before and after its work."""
    camera = by_camera(photograph(), "image/jpeg", authority.issue())
    editor = by_camera(photograph(), "image/jpeg", authority.issue(), parent=camera)
    for original, thumbnails in ((camera, 1), (editor, 3)):
        assert original.count(b"c2pa.thumbnail.") >= thumbnails
        signed = resigned(original, "JPEG", authority)
        told = read(signed.data, "image/jpeg", authority.pem)
        assert told["validation_state"] == "Trusted"
        assert all("thumbnail" not in manifest for manifest in told["manifests"].values())
        assert previews.shows(store_of(original))
        assert not previews.shows(store_of(signed.data))
        assert signed.parent.left_out
        assert all("it shows the unprotected picture" in one for one in signed.parent.left_out)
        redacted = [one for one in actions(told) if one["action"] == "c2pa.redacted"]
        assert len(redacted) == thumbnails


def test_a_picture_that_cannot_be_taken_out_takes_the_manifest_with_it(authority: Authority) -> None:
    """Actions cannot be redacted."""
    hidden = base64.b64encode(photograph()).decode()
    camera = by_camera(photograph(), "image/jpeg", authority.issue(), said=hidden)
    signed = resigned(camera, "JPEG", authority)
    told = read(signed.data, "image/jpeg", authority.pem)
    assert told["validation_state"] == "Trusted"
    assert [*told["manifests"]] == [signed.manifest]
    assert signed.parent.manifest is None
    (said,) = signed.parent.left_out
    assert said.startswith("the C2PA manifest: it cannot be kept (")
    assert not previews.shows(store_of(signed.data))


PLACE = {
    "label": "c2pa.metadata",
    "data": {"@context": {"exif": "http://ns.adobe.com/exif/1.0/"}, "exif:GPSLatitude": "39,21.102N"},
}
NOISE = {"label": "org.example.raw", "data": {"x": "".join(map(chr, range(0x100, 0x100 + 60))) * 100}}


def test_what_the_settings_strip_is_stripped_from_the_manifest(authority: Authority) -> None:
    camera = by_camera(photograph(), "image/jpeg", authority.issue(), assertions=(PLACE,))
    kept = resigned(camera, "JPEG", authority)
    assert b"39,21.102N" in kept.data
    placeless = resigned(camera, "JPEG", authority, Policy(places=False))
    assert b"GPS" not in placeless.data
    assert placeless.parent.manifest == kept.parent.manifest
    assert any("where the picture was taken" in one for one in placeless.parent.left_out)
    bare = resigned(camera, "JPEG", authority, Policy(kept=False))
    assert bare.parent.manifest is None
    assert bare.parent.left_out == ("the C2PA manifest: output.metadata is strip-all",)
    assert [*read(bare.data, "image/jpeg")["manifests"]] == [bare.manifest]


def test_large_data_of_an_unknown_kind_are_taken_out_unless_they_may_stay(authority: Authority) -> None:
    camera = by_camera(photograph(), "image/jpeg", authority.issue(), assertions=(NOISE,))
    assert b"org.example.raw" in camera
    tidy = resigned(camera, "JPEG", authority)
    assert any("org.example.raw" in one and "unknown kind" in one for one in tidy.parent.left_out)
    kept = resigned(camera, "JPEG", authority, Policy(opaque=True))
    assert not any("org.example.raw" in one for one in kept.parent.left_out)


def test_an_original_that_was_changed_after_it_was_signed_is_said_to_be(authority: Authority) -> None:
    camera = by_camera(photograph(), "image/jpeg", authority.issue())
    changed = camera[:-60] + bytes([camera[-60] ^ 1]) + camera[-59:]
    signed = resigned(changed, "JPEG", authority)
    assert signed.parent.state == "Invalid"
    told = read(signed.data, "image/jpeg", authority.pem)
    assert told["validation_state"] == "Trusted", "the parent's trouble is recorded, not ours"
    assert "assertion.dataHash.mismatch" in json.dumps(told)


def test_a_manifest_that_cannot_be_read_is_left_out(authority: Authority) -> None:
    camera = by_camera(photograph(), "image/jpeg", authority.issue())
    at = camera.index(b"c2pa.claim.v2") - 40
    broken = camera[:at] + bytes(60) + camera[at + 60 :]
    signed = resigned(broken, "JPEG", authority)
    assert signed.parent.manifest is None
    (said,) = signed.parent.left_out
    assert said.startswith("the C2PA manifest: it cannot be read (")


# ---- the network


@contextmanager
def server(answer: Any = None) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told = answer(body) if answer else b""
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        finally:
            listening.shutdown()


def test_neither_a_remote_manifest_nor_a_responder_is_asked(authority: Authority) -> None:
    with server() as (address, asked):
        note = (
            f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
            '<rdf:Description rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" '
            f'dcterms:provenance="{address}/m"/></rdf:RDF></x:xmpmeta>'
        )
        data = encoded(photo(), "JPEG", xmp=note.encode())
        provenance = authority.issue(Wanted(ocsp=f"{address}/ocsp"))
        signed = signing.sign(data, "JPEG", STATEMENT, Original(data, "JPEG", "a"), provenance)
        assert asked == []
    assert signed.parent.left_out == ("the C2PA manifest: it lies elsewhere, and nothing is fetched",)
    assert address.encode() in signed.data, "the original's XMP stays"


def test_a_timestamp_authority_countersigns(authority: Authority, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl, as a timestamp authority")
    tsa = Authority(_folder(tmp_path / "tsa"))
    tsa.issue(Wanted(kind="rsa2048", purposes=(STAMPS,)))
    (tsa.folder / "root.pem").write_bytes(tsa.pem)
    (tsa.folder / "serial").write_text("01\n")
    (tsa.folder / "tsa.cnf").write_text(
        "[tsa]\ndefault_tsa=one\n[one]\nserial=serial\nsigner_cert=chain.pem\ncerts=root.pem\nsigner_key=key.pem\n"
        "signer_digest=sha256\ndefault_policy=1.2.3.4\ndigests=sha256,sha384,sha512\n"
        "ess_cert_id_alg=sha256\nclock_precision_digits=0\n"
    )

    def reply(query: bytes) -> bytes:
        (tsa.folder / "query").write_bytes(query)
        command = [openssl, "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query", "-out", "reply"]
        subprocess.run(command, cwd=tsa.folder, check=True, capture_output=True, timeout=60)
        return (tsa.folder / "reply").read_bytes()

    data = photograph()
    with server(reply) as (address, asked):
        provenance = authority.issue(timestamp=f"{address}/tsa")
        signed = signing.sign(data, "JPEG", STATEMENT, Original(data, "JPEG", "a"), provenance)
        assert asked == ["/tsa"]
    told = read(signed.data, "image/jpeg", authority.pem)
    assert told["validation_state"] in ACCEPTED
    assert active(told)["signature_info"]["time"].startswith(time.strftime("%Y-", time.gmtime()))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_silent_timestamp_authority_is_named(authority: Authority) -> None:
    data = photograph()
    provenance = authority.issue(timestamp="http://127.0.0.1:9/tsa")
    with pytest.raises(
        SigningError, match=r"provenance\.timestamp http://127\.0\.0\.1:9/tsa: gave no timestamp"
    ):
        signing.sign(data, "JPEG", STATEMENT, Original(data, "JPEG", "a"), provenance)
    signing.probe(provenance)  # which asks nobody


# ---- a program that signs


def signer(authority: Authority, *command: str, **settings: Any) -> Provenance:
    return authority.issue(Wanted(kind="p256"), signer=command, **settings)


def test_a_program_signs_in_place_of_a_key(authority: Authority) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl, as a signer")
    key = str(authority.folder / "key.pem")
    data = photograph()
    provenance = signer(authority, openssl, "dgst", "-sha256", "-sign", key)
    signed = signing.sign(data, "JPEG", STATEMENT, Original(data, "JPEG", "a"), provenance)
    assert read(signed.data, "image/jpeg", authority.pem)["validation_state"] == "Trusted"
    assert signed.credentials.key is None


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("/nonexistent/sign",), r"/nonexistent/sign cannot be started \(No such file"),
        (("sh", "-c", "echo the token is locked >&2; exit 3"), r"ended with code 3 \(the token is locked\)"),
        (("sh", "-c", "cat >/dev/null; echo"), "gave no valid signature"),
        (("sh", "-c", "cat >/dev/null"), "printed 0 bytes"),
        (("sh", "-c", "cat; head -c 5000 /dev/zero"), r"printed \d{4} bytes; make it print the signature"),
        (("sh", "-c", "[ $BACKFIRE_ALGORITHM = es256 ] && exit 7"), "ended with code 7"),
    ],
)
def test_what_is_wrong_with_the_program_is_said(
    command: tuple[str, ...], message: str, authority: Authority
) -> None:
    data = photograph()
    with pytest.raises(SigningError, match=message):
        signing.sign(data, "JPEG", STATEMENT, Original(data, "JPEG", "a"), signer(authority, *command))


def test_a_program_that_hangs_is_ended_with_all_that_it_started(authority: Authority, tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    # Each process keeps the pipe open, which has an end once all have ended.
    command = ("sh", "-c", f"exec 3>{held}; sleep 60 & sleep 60")
    data = photograph()
    with open(os.open(held, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        with pytest.raises(SigningError, match=r"took longer than 0\.3 s; look after it, or raise"):
            signing.sign(
                data,
                "JPEG",
                STATEMENT,
                Original(data, "JPEG", "a"),
                signer(authority, *command, timeout_s=0.3),
            )
        wait_for(lambda: reader.read(1) == b"", seconds=20, because="what it started to be ended, too")


def test_a_file_that_the_library_cannot_sign_is_the_files_own_trouble(authority: Authority) -> None:
    data = b"\xff\xd8\xff\xe0 no JPEG"
    with pytest.raises(JobError, match="cannot sign the file") as refused:
        signing.sign(data, "JPEG", STATEMENT, Original(photograph(), "JPEG", "a"), authority.issue())
    assert refused.value.code == Code.SIGNING
    assert not isinstance(refused.value, SigningError)
    assert io.BytesIO(data).read() == data
