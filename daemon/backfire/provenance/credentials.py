"""The certificate and the key that sign, checked before they are needed: the one module for cryptography.

A certificate that C2PA does not take is refused here, in words, because the library's own are few. What is
checked: C2PA specification 2.x, "Credential types"; whether anybody trusts the issuer is for readers to say.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from backfire.config import Provenance
from backfire.errors import SigningError

DAY_S = 86_400
SOON_DAYS = 30
"""The days before the end of a certificate from which its owner is warned."""

PURPOSES = {
    "1.3.6.1.5.5.7.3.4": "e-mail protection",
    "1.3.6.1.5.5.7.3.36": "document signing",
    "1.3.6.1.4.1.311.76.59.1.9": "document signing (Microsoft)",
    "1.3.6.1.4.1.62558.2.1": "C2PA claim signing",
}
"""The purposes (extended key usages) that a certificate may be for."""
LEAST_RSA = 2048
MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Credentials:
    """What signs.

    Attributes:
        chain: the certificates as PEM, the signer's first.
        algorithm: C2PA's name for how the key signs, such as `es256`.
        key: the private key as PEM (PKCS #8, not encrypted); None where a program signs.
        subject: whom the certificate names, for the receipt.
        sha256: of the signer's certificate.
        until: when it expires, Unix seconds.
    """

    chain: bytes = field(repr=False)
    algorithm: str
    key: bytes | None = field(repr=False)
    subject: str
    sha256: str
    until: float


def load(settings: Provenance, *, at: float | None = None) -> Credentials:
    """Read and check certificate and key.

    Args:
        settings: name them; `certificate` must be set.
        at: the time for which the certificate must be valid, Unix seconds; None for now.

    Raises:
        SigningError: the extra is not there, a file cannot be read, or C2PA does not take the certificate.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
    except ImportError as error:
        raise SigningError(
            "provenance.certificate: is set, but the extra is not there; pip install 'backfire[provenance]'"
        ) from error
    assert settings.certificate is not None
    path = settings.certificate
    try:
        chain = x509.load_pem_x509_certificates(_read("certificate", path))
    except ValueError as error:
        raise SigningError(
            f"provenance.certificate {path}: holds no certificate in PEM ({error}); "
            "expected the lines from BEGIN CERTIFICATE to END CERTIFICATE, the signer's first"
        ) from None
    leaf = chain[0]
    _require_valid(path, leaf, time.time() if at is None else at)
    _require_purpose(path, leaf)
    _require_order(path, chain)
    algorithm = _algorithm(path, leaf.public_key())
    key = None if settings.key is None else _key(settings, leaf)
    return Credentials(
        b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain),
        algorithm,
        key,
        leaf.subject.rfc4514_string(),
        leaf.fingerprint(hashes.SHA256()).hex(),
        leaf.not_valid_after_utc.timestamp(),
    )


def exposed(settings: Provenance) -> bool:
    """Whether everybody on this machine may read the key's file."""
    try:
        return settings.key is not None and bool(settings.key.stat().st_mode & 0o004)
    except OSError:
        return False  # `load` says what is wrong with it


def _read(setting: str, path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(MOST_BYTES)
    except OSError as error:
        remedy = f"name a file that uid {os.geteuid()} may read"
        raise SigningError(
            f"provenance.{setting} {path}: cannot be read ({error.strerror}); {remedy}"
        ) from None


def _require_valid(path: Path, leaf: Any, at: float) -> None:
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if at > end.timestamp():
        raise SigningError(
            f"provenance.certificate {path}: expired on {_day(end)}; get a new one from its issuer"
        )
    if at < begin.timestamp():
        raise SigningError(
            f"provenance.certificate {path}: is valid from {_day(begin)} on; set the clock, or wait for it"
        )


def _require_purpose(path: Path, leaf: Any) -> None:
    """Refuse a certificate that is none for signing documents, as C2PA does."""
    from cryptography import x509

    def told(what: str) -> SigningError:
        return SigningError(
            f"provenance.certificate {path}: {what}, expected one for {' or '.join(PURPOSES.values())}, "
            "with the key usage digital signature; ask its issuer for such a certificate"
        )

    def extension(kind: Any) -> Any:
        try:
            return leaf.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None

    constraints, usage = extension(x509.BasicConstraints), extension(x509.KeyUsage)
    purposes = extension(x509.ExtendedKeyUsage)
    if constraints is not None and constraints.ca:
        raise told("its first certificate is that of an authority")
    if leaf.issuer == leaf.subject:
        raise told("its first certificate is signed by itself, which C2PA forbids")
    if usage is None or not usage.digital_signature:
        raise told("is not for signing")
    if purposes is None:
        raise told("names no purpose (extended key usage)")
    if not {one.dotted_string for one in purposes} & set(PURPOSES):
        named = ", ".join(getattr(one, "_name", one.dotted_string) for one in purposes)
        raise told(f"is for {named}")
    if extension(x509.AuthorityKeyIdentifier) is None:
        raise told("does not name its issuer's key (authority key identifier)")


def _require_order(path: Path, chain: list[Any]) -> None:
    for place, (one, issuer) in enumerate(itertools.pairwise(chain), 1):
        try:
            one.verify_directly_issued_by(issuer)
        except Exception:  # a wrong name, a wrong signature, or a kind of key that it does not know
            raise SigningError(
                f"provenance.certificate {path}: its certificate {place + 1} did not issue number {place}, "
                "expected the signer's first and each next one that of its issuer; put them in this order"
            ) from None


def _algorithm(path: Path, public: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in curves:
        return curves[public.curve.name]
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= LEAST_RSA:
        return "ps256"
    if isinstance(public, ed25519.Ed25519PublicKey):
        return "ed25519"
    size = getattr(public, "key_size", "?")
    name = getattr(getattr(public, "curve", None), "name", type(public).__name__)
    raise SigningError(
        f"provenance.certificate {path}: its key is {name} of {size} bits, expected P-256, P-384, P-521, "
        f"Ed25519, or RSA of {LEAST_RSA} bits or more; ask its issuer for one of these"
    )


def _key(settings: Provenance, leaf: Any) -> bytes:
    """The private key, decrypted; it stays in memory."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    path = settings.key
    assert path is not None
    data, passphrase = _read("key", path), _passphrase(settings)
    try:
        key = serialization.load_pem_private_key(data, passphrase)
    except TypeError:  # encrypted without a passphrase, or the other way round
        if passphrase is None:
            what, remedy = "is encrypted", "name the credential with its passphrase in provenance.passphrase"
        else:
            what, remedy = "is not encrypted", "take out provenance.passphrase"
        raise SigningError(f"provenance.key {path}: {what}; {remedy}") from None
    except (ValueError, UnsupportedAlgorithm):  # its text may quote the key
        remedy = "name the private key in PEM"
        if passphrase is not None:
            remedy += ", and the credential that holds its passphrase"
        raise SigningError(f"provenance.key {path}: cannot be opened; {remedy}") from None
    if _raw(key.public_key()) != _raw(leaf.public_key()):
        raise SigningError(
            f"provenance.key {path}: does not belong to the first certificate in {settings.certificate}; "
            "name the key with which that was requested"
        )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _raw(public: Any) -> Any:
    from cryptography.hazmat.primitives import serialization

    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _passphrase(settings: Provenance) -> bytes | None:
    """What the credential holds, without the line end that editors add."""
    if settings.passphrase is None:
        return None
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise SigningError(
            f"provenance.passphrase: got the credential {settings.passphrase!r}, but CREDENTIALS_DIRECTORY "
            f"is not set; start under systemd with LoadCredential={settings.passphrase}:FILE"
        )
    return _read("passphrase", Path(folder) / settings.passphrase).rstrip(b"\r\n")


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")
