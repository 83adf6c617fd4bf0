"""The daemon signs what it publishes, and its manifests, audit and receipt are about the signed files."""

from __future__ import annotations

import hashlib
import json

import pytest
from typer.testing import CliRunner

from backfire.cli.commands import app
from tests.support.authority import Authority, Wanted, read
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.sandbox import QUICK, Sandbox
from tests.unit.files.test_manifest import sha256sum


def test_what_the_daemon_publishes_is_signed_and_audited(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = sandbox.base / "secrets"
    secrets.mkdir()
    (secrets / "desk-key").write_text("open sesame\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secrets))
    authority = Authority(secrets)
    authority.issue(locked_with=b"open sesame")
    signing = {"certificate": "secrets/chain.pem", "key": "secrets/key.pem", "passphrase": "desk-key"}
    output = {"data_mining": "prohibited-genai"}
    sandbox.configure(**QUICK, regions={"detectors": ["sidecar"]}, provenance=signing, output=output)
    sandbox.drop(encoded(photo(), "JPEG"), "p.jpg")
    sandbox.drop(encoded(mask_picture()), "p.mask.png")
    ended = sandbox.backfire("once")
    assert ended.returncode == 0, ended.stderr
    assert "open sesame" not in ended.stderr + ended.stdout

    published = (sandbox.outbox / "p.jpg").read_bytes()
    assert read(published, "image/jpeg", authority.pem)["validation_state"] == "Trusted"
    (manifest,) = sandbox.outbox.glob(".manifest-*.sha256")
    judged = sha256sum(sandbox.outbox, manifest.name)
    assert (judged.returncode, judged.stdout.count(b": OK")) == (0, 1), judged.stderr
    receipt = sandbox.receipt("p.jpg")
    assert receipt["output_sha256"] == hashlib.sha256(published).hexdigest()
    assert receipt["signature"]["signed"]
    assert receipt["data_mining"]["value"] == "DMI-PROHIBITED-GENAIMLTRAINING"
    config = str(sandbox.base / "config.yaml")
    audited = CliRunner().invoke(app, ["audit", "--json", "-c", config])
    assert audited.exit_code == 0, audited.output
    assert json.loads(audited.stdout)["files"] == 3

    authority.issue(Wanted(days=(-9, -1)), locked_with=b"open sesame")
    sandbox.drop(encoded(photo(seed=1), "JPEG"), "q.jpg")
    refused = sandbox.backfire("once")
    assert refused.returncode == 2
    assert "provenance.certificate" in refused.stderr
    assert "expired on" in refused.stderr
    assert (sandbox.inbox / "q.jpg").exists()
