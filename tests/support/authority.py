"""A certificate authority of our own, made with `cryptography`, and what the C2PA library reads in a file.

Tests that import this are skipped where the extra `provenance` is not installed.
"""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backfire.config import Provenance

WHY = "needs the extra provenance: pip install 'backfire[provenance]'"
c2pa: Any = pytest.importorskip("c2pa", reason=WHY)
x509: Any = pytest.importorskip("cryptography.x509", reason=WHY)
asymmetric: Any = pytest.importorskip("cryptography.hazmat.primitives.asymmetric", reason=WHY)
primitives: Any = pytest.importorskip("cryptography.hazmat.primitives", reason=WHY)
for _kind in ("ec", "ed25519", "rsa"):
    pytest.importorskip(f"cryptography.hazmat.primitives.asymmetric.{_kind}", reason=WHY)
for _part in ("hashes", "serialization"):
    pytest.importorskip(f"cryptography.hazmat.primitives.{_part}", reason=WHY)

MAIL, TLS, STAMPS = "1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.8"
QUIET = {"remote_manifest_fetch": False, "ocsp_fetch": False}


def key_of(kind: str) -> Any:
    """A new private key: p256, p384, p521, k256, ed25519, or rsa with its bits."""
    curves = {"p256": "SECP256R1", "p384": "SECP384R1", "p521": "SECP521R1", "k256": "SECP256K1"}
    if kind in curves:
        return asymmetric.ec.generate_private_key(getattr(asymmetric.ec, curves[kind])())
    if kind == "ed25519":
        return asymmetric.ed25519.Ed25519PrivateKey.generate()
    return asymmetric.rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


@dataclass(frozen=True)
class Wanted:
    """What a certificate is to be like; the defaults are what C2PA takes.

    Attributes:
        kind: of the key, see `key_of`.
        purposes: extended key usages; none leaves the extension out.
        usage: whether the key may sign.
        days: from when to when it is valid, counted from now.
        is_authority: whether it is that of an authority.
        names_issuer: whether it names its issuer's key.
        by_itself: whether it is signed by its own key.
        ocsp: the address of a responder.
    """

    kind: str = "p256"
    purposes: tuple[str, ...] = (MAIL,)
    usage: bool = True
    days: tuple[float, float] = (-1, 90)
    is_authority: bool = False
    names_issuer: bool = True
    by_itself: bool = False
    ocsp: str | None = None


@dataclass
class Authority:
    """A root of trust that issues certificates into a folder."""

    folder: Path
    key: Any = field(default_factory=lambda: key_of("p256"))

    def __post_init__(self) -> None:
        wanted = Wanted(is_authority=True, by_itself=True, purposes=(), days=(-10, 3650))
        self.certificate = self._certificate("Root", self.key, wanted)
        self.pem = self.certificate.public_bytes(primitives.serialization.Encoding.PEM)

    def issue(
        self, wanted: Wanted = Wanted(), *, locked_with: bytes | None = None, **settings: Any
    ) -> Provenance:
        """Write `chain.pem` and `key.pem`, and return settings that name them.

        Args:
            locked_with: the passphrase of the key.
            settings: further ones; with `signer`, the key is written and not named.
        """
        serialization = primitives.serialization
        key = key_of(wanted.kind)
        leaf = self._certificate("Picture desk", key, wanted)
        chain, secret = self.folder / "chain.pem", self.folder / "key.pem"
        chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + self.pem)
        coding = (
            serialization.NoEncryption()
            if locked_with is None
            else serialization.BestAvailableEncryption(locked_with)
        )
        secret.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, coding)
        )
        secret.chmod(0o600)
        signs: dict[str, Any] = {} if "signer" in settings else {"key": secret}
        return Provenance(certificate=chain, **signs, **settings)

    def _certificate(self, name: str, key: Any, wanted: Wanted) -> Any:
        now = dt.datetime.now(dt.UTC)
        begin, end = (now + dt.timedelta(days=days) for days in wanted.days)
        subject = _name(name)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if wanted.by_itself else _name("Root"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )
        ca = wanted.is_authority
        usage = x509.KeyUsage(wanted.usage, False, not wanted.usage, False, False, ca, ca, False, False)
        found = [(x509.BasicConstraints(ca, None), True), (usage, True)]
        found.append((x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False))
        if wanted.purposes:
            purposes = [x509.ObjectIdentifier(one) for one in wanted.purposes]
            # As RFC 3161 asks of a timestamp authority.
            found.append((x509.ExtendedKeyUsage(purposes), wanted.purposes == (STAMPS,)))
        if wanted.names_issuer:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            found.append((issuer, False))
        if wanted.ocsp is not None:
            access = x509.AccessDescription(
                x509.ObjectIdentifier("1.3.6.1.5.5.7.48.1"), x509.UniformResourceIdentifier(wanted.ocsp)
            )
            found.append((x509.AuthorityInformationAccess([access]), False))
        for extension, critical in found:
            builder = builder.add_extension(extension, critical)
        signer = key if wanted.by_itself else self.key
        return builder.sign(signer, primitives.hashes.SHA256())


def _name(common: str) -> Any:
    names = ((x509.NameOID.ORGANIZATION_NAME, "Gazette"), (x509.NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in names])


def read(
    data: bytes, mime: str, anchor: bytes | None = None, *, purposes: Collection[str] = ()
) -> dict[str, Any]:
    """What the library reads in a file, `validation_state` among it.

    Args:
        anchor: the certificate, as PEM, of an authority that is trusted.
        purposes: what certificates may be for, where it is not what the library takes by default.
    """
    trust = {} if anchor is None else {"trust_anchors": anchor.decode()}
    if purposes:
        trust["trust_config"] = "\n".join(purposes)
    with (
        c2pa.Context.from_dict({"verify": QUIET, "trust": trust}) as context,
        c2pa.Reader(mime, io.BytesIO(data), context=context) as reader,
    ):
        told: dict[str, Any] = json.loads(reader.json())
    return told


def active(told: dict[str, Any]) -> dict[str, Any]:
    """The manifest that speaks of the file itself."""
    manifest: dict[str, Any] = told["manifests"][told["active_manifest"]]
    return manifest


def actions(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Its actions."""
    found = next(one for one in active(told)["assertions"] if one["label"].startswith("c2pa.actions"))
    listed: list[dict[str, Any]] = found["data"]["actions"]
    return listed


def by_camera(
    data: bytes,
    mime: str,
    settings: Provenance,
    *,
    thumbnail: bool = True,
    parent: bytes | None = None,
    assertions: tuple[dict[str, Any], ...] = (),
    said: str = "a photograph",
) -> bytes:
    """A file as a camera or an editor signs it, with a thumbnail of the picture in its manifest.

    Args:
        parent: the file that an editor opened; None for a camera.
        assertions: further ones.
        said: the description of the action.
    """
    assert settings.certificate is not None
    assert settings.key is not None
    chain, key = settings.certificate.read_bytes(), settings.key.read_bytes()
    small = {"enabled": thumbnail, "long_edge": 128, "format": "jpeg"}
    made = {
        "action": "c2pa.created",
        "description": said,
        "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture",
    }
    opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["one"]}}
    action = {"label": "c2pa.actions.v2", "data": {"actions": [made if parent is None else opened]}}
    definition = {"claim_generator_info": [{"name": "Camera"}], "assertions": [action, *assertions]}
    out = io.BytesIO()
    with (
        c2pa.Context.from_dict({"verify": QUIET, "builder": {"thumbnail": small}}) as context,
        c2pa.Builder(definition, context) as builder,
        c2pa.Signer.from_info(c2pa.C2paSignerInfo("es256", chain, key, None)) as signer,
    ):
        if parent is not None:
            builder.add_ingredient(
                {"relationship": "parentOf", "instance_id": "one"}, mime, io.BytesIO(parent)
            )
        builder.sign(signer, mime, io.BytesIO(data), out)
    return out.getvalue()
