"""Manifests, audit and receipts of the real daemon, checked by sha256sum."""

from __future__ import annotations

import hashlib
import json
import os

from typer.testing import CliRunner, Result

from backfire.cli.commands import app
from backfire.errors import BackfireError, ConfigError
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.sandbox import QUICK, Sandbox
from tests.unit.files.test_manifest import sha256sum


def test_audit_of_what_the_daemon_kept(sandbox: Sandbox) -> None:
    sandbox.configure(**QUICK, regions={"detectors": ["sidecar"], "none_found": "pass"})
    originals = {name: encoded(photo(seed=len(name))) for name in ("p.png", "desk/new\nline.png")}
    for name, data in originals.items():
        sandbox.drop(data, name)
    sandbox.drop(encoded(mask_picture()), "p.mask.png")
    assert sandbox.backfire("once").returncode == 0
    for folder, count in (("archive", 3), ("outbox", 2)):
        (manifest,) = (sandbox.base / folder).glob(".manifest-*.sha256")
        judged = sha256sum(sandbox.base / folder, manifest.name)
        assert (judged.returncode, judged.stdout.count(b": OK")) == (0, count), judged.stderr
    for name, data in originals.items():
        digest = hashlib.sha256(data).hexdigest().encode()
        assert digest in next(sandbox.archive.glob(".manifest-*")).read_bytes(), name

    events = {event["eventType"]: event for event in sandbox.receipt("p.png")["events"]}
    assert list(events) == ["message digest calculation", "creation", "validation", "fixity check"]
    (checked,) = events["fixity check"]["linkingObjectIdentifier"]
    assert checked["linkingObjectIdentifierValue"] == hashlib.sha256(originals["p.png"]).hexdigest()
    assert "p.png" in events["fixity check"]["eventDetail"]
    passed = [event["eventType"] for event in sandbox.receipt("desk/new\nline.png")["events"]]
    assert passed[1] == "replication"

    # The commands run in this process, since a new one would import everything again.
    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "-c", str(sandbox.base / "config.yaml")])

    sound = command("audit", "--json")
    assert sound.exit_code == 0, sound.output
    assert json.loads(sound.stdout)["files"] == 5
    bag = sandbox.base / "bag"
    bagged = command("bag", str(bag), "--info", "Source-Organization=Desk", "--json")
    assert bagged.exit_code == 0, bagged.output
    assert json.loads(bagged.stdout)["files"] == 5 + 3, "and two receipts and a sheet"
    judged = sha256sum(bag, "tagmanifest-sha256.txt")
    assert judged.returncode == 0, judged.stderr
    assert isinstance(command("bag", str(bag)).exception, ConfigError), "nothing is overwritten"
    assert isinstance(command("bag", str(bag), "--info", "words").exception, ConfigError)

    target = sandbox.archive / "p.png"
    flipped = bytearray(target.read_bytes())
    flipped[100] ^= 4
    target.write_bytes(flipped)
    os.unlink(sandbox.outbox / "p.png")
    (sandbox.archive / "added.png").write_bytes(b"x")
    result = command("audit", "--json")
    assert result.exit_code == 3
    told = [(row["folder"], row["path"], row["kind"]) for row in json.loads(result.stdout)["findings"]]
    assert told == [
        ("archive", "p.png", "changed"),
        ("archive", "added.png", "unknown"),
        ("outbox", "p.png", "missing"),
    ]
    words = command("audit", "--folder", "outbox")
    assert (words.exit_code, "missing" in words.stdout) == (3, True)
    assert isinstance(command("audit", "--folder", "inbox").exception, ConfigError)
    assert isinstance(command("bag", str(sandbox.base / "second")).exception, BackfireError)
