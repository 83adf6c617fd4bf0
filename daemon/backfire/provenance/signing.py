"""Signs a finished file with the C2PA library: the one module that loads it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from backfire.config import Provenance
from backfire.errors import Code, JobError, SigningError
from backfire.provenance import command, credentials, original
from backfire.provenance.credentials import Credentials
from backfire.provenance.original import Original, Policy, Redaction
from backfire.provenance.statement import TRAINING, Statement

MIME = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "TIFF": "image/tiff",
    "WEBP": "image/webp",
    "HEIF": "image/heic",
    "AVIF": "image/avif",
}
"""By format: what it is called by the library. These are the formats that it can sign."""
READ = {**MIME, "GIF": "image/gif"}
"""By format: those from which it can read a manifest."""

ALL = Policy()

PIXEL = base64.b64decode(
    b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
"""A picture of one pixel, which `probe` signs."""


@dataclass(frozen=True)
class Parent:
    """What became of the manifests that the original brought along.

    Attributes:
        manifest: the label of its active manifest; None if it had none, or none is kept.
        state: what the library found of it: `Valid`, or `Invalid` where the original was changed since.
        left_out: what is not published of it, and why, a phrase each.
    """

    manifest: str | None = None
    state: str | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signed:
    """A signed file.

    Attributes:
        data: its bytes.
        manifest: the label of its manifest.
        parent: what became of the original's.
        credentials: what signed.
    """

    data: bytes
    manifest: str
    parent: Parent
    credentials: Credentials


def sign(
    data: bytes,
    format: str,  # noqa: A002  # as in `imaging`
    statement: Statement,
    source: Original,
    settings: Provenance,
    policy: Policy = ALL,
) -> Signed:
    """Put a manifest into a file and read it back.

    Args:
        data: the file's bytes.
        format: of the file, one of `MIME`.
        statement: what the manifest says.
        source: the original, which becomes the manifest's parent.
        settings: who signs.
        policy: what of the original's own manifests may be published.

    Raises:
        SigningError: certificate, key, signer or timestamp authority failed.
        JobError: `Code.SIGNING`, the library cannot sign this very file.
    """
    used = credentials.load(settings)
    with _context(settings) as context:
        parent, redactions = _kept(source, context, policy)
        sign = partial(_Signing(context, settings, used).sign, data, format, statement, source)
        why = ""
        try:
            signed, store = sign(parent.manifest is not None, redactions)
            if parent.manifest is not None and not original.is_clean(store, policy):
                why = "what must not be published could not be taken out of it"
        except SigningError:
            raise
        except JobError as error:
            if parent.manifest is None:
                raise
            why = f"it cannot be kept ({error.message})"
        if why:
            parent = Parent(left_out=(f"the C2PA manifest: {why}",))
            signed, store = sign(False, [])
        label, state = _read(signed, MIME[format], context)
    if state not in ("Valid", "Trusted"):
        raise JobError(
            Code.SIGNING, f"the signed file reads back as {state}, expected Valid; please report it"
        )
    return Signed(signed, label, parent, used)


def probe(settings: Provenance) -> Credentials:
    """Sign a picture of one pixel, as `sign` does, but without a timestamp.

    Raises:
        SigningError: see `sign`.
    """
    quiet = settings.model_copy(update={"timestamp": None})
    try:
        statement = Statement(title=None, work=None)
        return sign(PIXEL, "PNG", statement, Original(PIXEL, "PNG", None), quiet).credentials
    except SigningError:
        raise
    except JobError as error:
        raise SigningError(f"provenance: a trial failed: {error.message}") from error


@contextmanager
def _context(settings: Provenance) -> Iterator[Any]:
    """The library with what this project asks of it: no network, no thumbnails."""
    import c2pa

    hosts = [] if settings.timestamp is None else [urlsplit(settings.timestamp).hostname]
    asked = {
        "core": {"allowed_network_hosts": hosts},
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": True},
        "trust": {"trust_config": "\n".join(credentials.PURPOSES)},
        "builder": {
            "thumbnail": {"enabled": False},  # one of the original would show the unprotected picture
            "created_assertion_labels": ["c2pa.actions", "c2pa.ingredient", TRAINING],
        },
    }
    with c2pa.Context.from_dict(asked) as context:
        yield context


def _kept(source: Original, context: Any, policy: Policy) -> tuple[Parent, list[Redaction]]:
    """What is kept of the original's manifests, and what must be taken out of them."""
    import c2pa

    mime = READ.get(source.format)
    if mime is None:
        return Parent(), []
    try:
        reader = c2pa.Reader.try_create(mime, io.BytesIO(source.data), context=context)
        if reader is None:
            return Parent(), []
        with reader:
            told = json.loads(reader.json())
        if not policy.kept:
            return Parent(left_out=("the C2PA manifest: output.metadata is strip-all",)), []
        with c2pa.Builder({}, context) as builder:
            # An archive holds the manifests as the library carries them over.
            builder.add_ingredient(_ingredient(source), mime, io.BytesIO(source.data))
            archive = io.BytesIO()
            builder.write_ingredient_archive(source.instance_id, archive)
    except c2pa.C2paError as error:
        elsewhere = str(error).startswith("Remote")
        why = "it lies elsewhere, and nothing is fetched" if elsewhere else f"it cannot be read ({error})"
        return Parent(left_out=(f"the C2PA manifest: {why}",)), []
    found = original.redactions(archive.getvalue(), told["manifests"].keys(), policy)
    said = dict.fromkeys(f"{one.label} of the C2PA manifest: {one.why}" for one in found)
    return Parent(told["active_manifest"], told["validation_state"], tuple(said)), found


def _ingredient(source: Original) -> dict[str, Any]:
    named = {} if source.name is None else {"title": source.name}
    return {**named, "relationship": "parentOf", "instance_id": source.instance_id}


class _Signing:
    """Signs with one set of credentials.

    Attributes:
        failure: why the signer failed; the library passes on no exception of it.
    """

    def __init__(self, context: Any, settings: Provenance, used: Credentials) -> None:
        self._context, self._settings, self._used = context, settings, used
        self.failure: SigningError | None = None

    def sign(
        self,
        data: bytes,
        format: str,  # noqa: A002
        statement: Statement,
        source: Original,
        with_its_own: bool,
        redactions: Sequence[Redaction],
    ) -> tuple[bytes, bytes]:
        """The signed file, and the bytes of all manifests in it.

        Args:
            with_its_own: whether the original's own manifests are among them, without the `redactions`.
        """
        import c2pa

        definition, ingredient = statement.definition(source.instance_id, redactions), _ingredient(source)
        if not with_its_own:
            kind = {"format": READ[source.format]} if source.format in READ else {}
            definition["ingredients"] = [{**ingredient, **kind}]
        out = io.BytesIO()
        try:
            with c2pa.Builder(definition, self._context) as builder, self._signer() as signer:
                if with_its_own:
                    builder.add_ingredient(ingredient, READ[source.format], io.BytesIO(source.data))
                store = builder.sign(signer, MIME[format], io.BytesIO(data), out)
        except c2pa.C2paError as error:
            raise (self.failure or self._told(error)) from error
        return out.getvalue(), bytes(store)

    def _signer(self) -> Any:
        import c2pa

        used = self._used
        if used.key is not None:
            return c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(used.algorithm, used.chain, used.key, self._settings.timestamp)
            )
        return c2pa.Signer.from_callback(
            self._asked,
            c2pa.C2paSigningAlg[used.algorithm.upper()],
            used.chain.decode(),
            self._settings.timestamp,
        )

    def _asked(self, data: bytes) -> bytes:
        """The program's signature; called by the library."""
        try:
            return command.signature(data, self._used.algorithm, self._settings)
        except SigningError as error:
            self.failure = error
            raise

    def _told(self, error: Exception) -> JobError:
        """What an error of the library means: trouble with what signs, or with this file."""
        import c2pa

        if not isinstance(error, c2pa.C2paError.Signature):
            return JobError(
                Code.SIGNING, f"the C2PA library cannot sign the file ({error}); please report it"
            )
        if self._settings.timestamp is not None and ("http" in str(error) or "imestamp" in str(error)):
            return SigningError(
                f"provenance.timestamp {self._settings.timestamp}: gave no timestamp ({error}); look whether "
                "it can be reached, or set it to null"
            )
        what = self._settings.signer[0] if self._settings.signer else str(self._settings.key)
        remedy = "a certificate and a key that belong together and are for signing documents"
        return SigningError(f"provenance: {what} gave no valid signature ({error}), expected one by {remedy}")


def _read(data: bytes, mime: str, context: Any) -> tuple[str, str]:
    """The label of a file's manifest, and what the library says of it."""
    import c2pa

    with c2pa.Reader(mime, io.BytesIO(data), context=context) as reader:
        told = json.loads(reader.json())
    return told["active_manifest"], told["validation_state"]
