"""What is wrong with a certificate or a key is said in words before anything is to be signed."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from backfire.admin.check import check
from backfire.config import Provenance, Settings, parse
from backfire.errors import ConfigError, SigningError
from backfire.provenance import credentials, signing
from backfire.service import preflight
from tests.support.authority import TLS, Authority, Wanted

WRONG = {
    "expired": (Wanted(days=(-90, -1)), r"expired on \d{4}-\d\d-\d\d .*; get a new one"),
    "future": (Wanted(days=(1, 90)), r"is valid from \d{4}.* on; set the clock"),
    "tls": (Wanted(purposes=(TLS,)), r"is for serverAuth, expected one for .*document signing"),
    "no purpose": (Wanted(purposes=()), "names no purpose"),
    "no signing": (Wanted(usage=False), "is not for signing"),
    "authority": (Wanted(is_authority=True), "is that of an authority"),
    "itself": (Wanted(by_itself=True), "signed by itself, which C2PA forbids"),
    "no issuer": (Wanted(names_issuer=False), "does not name its issuer's key"),
    "curve": (Wanted(kind="k256"), "its key is secp256k1 of 256 bits, expected P-256"),
    "short": (Wanted(kind="rsa1024"), "RSA.* of 1024 bits, expected .*2048 bits"),
}


def settings_with(provenance: Provenance, folder: Path) -> Settings:
    settings = parse({"folders": {"inbox": "inbox"}, "regions": {"detectors": ["sidecar"]}}, base=folder)
    return settings.model_copy(update={"provenance": provenance})


def signer_lines(settings: Settings) -> list[Any]:
    lines = itertools.takewhile(lambda line: line.subject != "device", check(settings))
    return [line for line in lines if line.subject.startswith("signer")]


@pytest.mark.parametrize("case", WRONG)
def test_a_certificate_that_c2pa_does_not_take_is_refused_in_words(case: str, tmp_path: Path) -> None:
    wanted, message = WRONG[case]
    provenance = Authority(tmp_path).issue(wanted)
    with pytest.raises(SigningError, match=message) as refused:
        credentials.load(provenance)
    assert refused.value.message.startswith(f"provenance.certificate {tmp_path / 'chain.pem'}: ")
    with pytest.raises(ConfigError, match=message):
        preflight.require_signer(settings_with(provenance, tmp_path))


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "ed25519"])
def test_every_kind_of_key_is_known(kind: str, tmp_path: Path) -> None:
    found = credentials.load(Authority(tmp_path).issue(Wanted(kind=kind)))
    names = {"p256": "es256", "p384": "es384", "p521": "es512", "rsa2048": "ps256", "ed25519": "ed25519"}
    assert found.algorithm == names[kind]
    assert found.subject == "CN=Picture desk,O=Gazette"
    assert "PRIVATE" not in repr(found)


def test_a_certificate_is_judged_by_the_time_it_is_needed(tmp_path: Path) -> None:
    provenance = Authority(tmp_path).issue()
    credentials.load(provenance)
    with pytest.raises(SigningError, match="expired"):
        credentials.load(provenance, at=time.time() + 91 * 86_400)


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    provenance = authority.issue()
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate, secret = chain.read_bytes(), key.read_bytes()

    def told(**others: bytes) -> str:
        chain.write_bytes(others.get("chain", certificate))
        key.write_bytes(others.get("key", secret))
        with pytest.raises(SigningError) as refused:
            credentials.load(provenance)
        assert "PRIVATE" not in refused.value.message
        return refused.value.message

    assert "holds no certificate in PEM" in told(chain=b"")
    assert "holds no certificate in PEM" in told(chain=secret)
    assert "cannot be opened; name the private key in PEM" in told(key=certificate)
    lines = certificate.partition(b"-----END CERTIFICATE-----\n")
    assert "is that of an authority" in told(chain=lines[2] + lines[0] + lines[1])
    other = Authority(tmp_path)
    assert "did not issue number 1" in told(chain=lines[0] + lines[1] + other.pem)
    other.issue()
    assert "does not belong to the first certificate" in told(key=key.read_bytes())
    key.unlink()
    with pytest.raises(SigningError, match=r"provenance.key .*: cannot be read \(No such file"):
        credentials.load(provenance)


def test_the_passphrase_comes_from_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance = Authority(tmp_path).issue(locked_with=b"open sesame", passphrase="desk-key")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(SigningError, match=r"start under systemd with LoadCredential=desk-key:FILE"):
        credentials.load(provenance)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(SigningError, match="desk-key: cannot be read"):
        credentials.load(provenance)
    (tmp_path / "desk-key").write_text("open sesame\n")
    assert b"BEGIN PRIVATE KEY" in (credentials.load(provenance).key or b"")
    (tmp_path / "desk-key").write_text("wrong")
    with pytest.raises(SigningError, match=r"cannot be opened; .* the credential that holds its passphrase"):
        credentials.load(provenance)
    bare = provenance.model_copy(update={"passphrase": None})
    with pytest.raises(SigningError, match="is encrypted; name the credential"):
        credentials.load(bare)
    plain = Authority(tmp_path).issue().model_copy(update={"passphrase": "desk-key"})
    with pytest.raises(SigningError, match="is not encrypted; take out"):
        credentials.load(plain)


def test_check_signs_for_a_trial(tmp_path: Path) -> None:
    (line,) = signer_lines(settings_with(Authority(tmp_path).issue(), tmp_path))
    assert line.ok
    assert re.fullmatch(
        r"CN=Picture desk,O=Gazette, es256, until \d{4}-\d\d-\d\d; signed a trial", line.found
    )


def test_the_guides_own_authority_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    guide = (Path(__file__).parents[3] / "docs/guides/provenance.md").read_text()
    (commands,) = [one for one in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) if "openssl req" in one]
    (tmp_path / "passphrase").write_text("open sesame\n")
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    made = signing.probe(Provenance(certificate=chain, key=key, passphrase="passphrase"))
    assert made.subject == "CN=Picture desk,O=Gazette"


def test_check_names_what_is_wrong(tmp_path: Path) -> None:
    (line,) = signer_lines(settings_with(Authority(tmp_path).issue(Wanted(days=(-9, -1))), tmp_path))
    assert not line.ok
    assert "expired" in line.remedy
    (line,) = signer_lines(settings_with(Authority(tmp_path).issue(Wanted(days=(-9, 9))), tmp_path))
    assert line.remedy == "get a new certificate: it expires in 9 days"
    provenance = Authority(tmp_path).issue()
    (tmp_path / "key.pem").chmod(0o644)
    _, exposed = signer_lines(settings_with(provenance, tmp_path))
    assert exposed.remedy == f"chmod o-r {tmp_path / 'key.pem'}"


def test_without_a_certificate_nothing_is_said(tmp_path: Path) -> None:
    settings = settings_with(Provenance(), tmp_path)
    preflight.require_signer(settings)
    assert signer_lines(settings) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"certificate": "a.pem"}, "got neither key nor signer, expected one of them"),
        ({"certificate": "a.pem", "key": "k", "signer": ["x"]}, "got both key and signer"),
        ({"key": "k.pem"}, "provenance.key: is set without provenance.certificate"),
        (
            {"certificate": "a.pem", "signer": ["x"], "passphrase": "p"},
            "is set without provenance.key",
        ),
        ({"timestamp": "ftp://x"}, "provenance.timestamp: is no address"),
        ({"timestamp": "https://me:secret@x"}, "provenance.timestamp: is no address"),
        ({"passphrase": "../x", "certificate": "a", "key": "k"}, "'provenance.passphrase'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        parse({"folders": {"inbox": "in"}, "provenance": given}, base=Path("/"))
    assert "secret" not in str(refused.value)


def test_what_decides_about_a_result_is_in_the_digest(tmp_path: Path) -> None:
    """Nothing is done again because the key lies elsewhere."""
    plain = parse({"folders": {"inbox": "in"}}, base=tmp_path)
    provenance = {"certificate": "c.pem", "key": "k.pem"}
    signed = parse({"folders": {"inbox": "in"}, "provenance": provenance}, base=tmp_path)
    elsewhere = parse({"folders": {"inbox": "in"}, "provenance": {**provenance, "key": "o"}}, base=tmp_path)
    assert signed.sha256 == elsewhere.sha256 != plain.sha256
    mining = parse({"folders": {"inbox": "in"}, "output": {"data_mining": "prohibited"}}, base=tmp_path)
    assert mining.sha256 != plain.sha256
