"""The section `provenance`: who signs what was done to a picture, in the published file itself."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from backfire.config.section import FromFile, Program, Section

CREDENTIAL = r"^[\w.@-]+$"
"""How systemd's credentials are named."""


class Provenance(Section):
    """Who signs what was done to a picture, as a C2PA manifest in the file; off without a certificate.

    Needs the extra `provenance`; see docs/guides/provenance.md.
    """

    certificate: FromFile | None = None
    """The file with the signer's certificate and those that issued it, in this order, as PEM."""
    key: FromFile | None = None
    """The file with the certificate's private key, as PEM; /run/credentials/backfire.service/NAME is one that
    systemd loads. Either this or `signer` is needed."""
    passphrase: Annotated[str, Field(pattern=CREDENTIAL)] | None = None
    """The systemd credential (LoadCredential=) that holds the passphrase of the key."""
    signer: Program = ()
    """The program that signs in place of `key`, with arguments: it gets the bytes on its standard input and
    the algorithm, such as es256, in BACKFIRE_ALGORITHM, and prints the signature."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30
    """The seconds that `signer` may take."""
    timestamp: str | None = None
    """The address of a timestamp authority (RFC 3161), such as http://timestamp.example.org, that is asked to
    countersign each picture; null asks none."""
    training_mining: bool = False
    """Whether the manifest, too, says what the XMP says of data mining, as the assertion
    cawg.training-mining."""

    @property
    def on(self) -> bool:
        """Whether published files are signed."""
        return self.certificate is not None

    @property
    def deciding(self) -> dict[str, Any]:
        """What of it decides what a result looks like, for `Settings.sha256`: not where the key is."""
        return self.model_dump(mode="json", include={"certificate", "timestamp", "training_mining"})

    @field_validator("passphrase", mode="before")
    @classmethod
    def _credential(cls, value: object) -> object:
        if value is not None and not (isinstance(value, str) and re.fullmatch(CREDENTIAL, value)):
            # It may be the passphrase itself, which must not be repeated.
            raise ValueError(
                "'provenance.passphrase': is no name of a credential, such as desk-key; give the passphrase "
                "to systemd (LoadCredential=), and write the name that it has there"
            )
        return value

    @field_validator("timestamp")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        except ValueError:
            sound = False
        if not sound:
            raise ValueError("provenance.timestamp: is no address such as 'http://timestamp.example.org'")
        return value

    @model_validator(mode="after")
    def _one_signer(self) -> Provenance:
        named = [name for name in ("key", "signer") if getattr(self, name)]
        if self.certificate is None:
            if named:
                raise ValueError(
                    f"provenance.{named[0]}: is set without provenance.certificate; name the certificate, too"
                )
        elif len(named) != 1:
            found = "both key and signer" if named else "neither key nor signer"
            raise ValueError(f"provenance: got {found}, expected one of them; name what signs")
        if self.passphrase is not None and self.key is None:
            raise ValueError("provenance.passphrase: is set without provenance.key; take it out")
        return self
