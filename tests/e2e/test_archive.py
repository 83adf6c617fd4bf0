"""Manifests, audit and receipts of the real daemon; sha256sum itself judges."""

from __future__ import annotations

import hashlib
import json
import os

from tests.conftest import QUICK, Sandbox, mask_picture, photo
from tests.e2e.test_daemon import encoded
from tests.unit.test_manifest import sha256sum


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

    sound = sandbox.backfire("audit", "--json")
    assert sound.returncode == 0, sound.stderr
    assert json.loads(sound.stdout)["files"] == 5

    target = sandbox.archive / "p.png"
    flipped = bytearray(target.read_bytes())
    flipped[100] ^= 4
    target.write_bytes(flipped)
    os.unlink(sandbox.outbox / "p.png")
    (sandbox.archive / "added.png").write_bytes(b"x")
    result = sandbox.backfire("audit", "--json")
    assert result.returncode == 3
    told = [(row["folder"], row["path"], row["kind"]) for row in json.loads(result.stdout)["findings"]]
    assert told == [
        ("archive", "p.png", "changed"),
        ("archive", "added.png", "unknown"),
        ("outbox", "p.png", "missing"),
    ]
    words = sandbox.backfire("audit", "--folder", "outbox")
    assert (words.returncode, "missing" in words.stdout) == (3, True)
    assert sandbox.backfire("audit", "--folder", "inbox").returncode == 2
