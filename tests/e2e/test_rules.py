"""Rules for the pictures of a folder, in the real daemon."""

from __future__ import annotations

import io
import json

from tests.support.pictures import photo
from tests.support.sandbox import LENIENT, Sandbox


def png() -> bytes:
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    return buffer.getvalue()


def test_a_rule_decides_for_its_folder_and_explain_names_it(sandbox: Sandbox) -> None:
    sandbox.configure(
        protect={"iterations": 2, "margin_px": 32, "whole_px": 0},
        verify=LENIENT,
        regions={"detectors": ["sidecar"], "none_found": "pass"},
        rules=[
            {
                "match": "bugs/**",
                "detectors": ["fixed", "command"],
                "on_error": "skip",
                "fixed": [{"box": [0.5, 0.5, 0.8, 0.8], "label": "bug"}],
                "command": {"argv": ["/bin/false"]},
            },
            {"match": "full-size/**", "long_px": None},
        ],
        output={"long_px": 96},
    )
    sandbox.drop(png(), "plain.png")
    sandbox.drop(png(), "full-size/plain.png")
    sandbox.drop(png(), "bugs/b.png")
    sandbox.drop(b'{"regions": [{"label": "mark", "box": [60, 44, 100, 84]}]}', "marked.json")
    sandbox.drop(png(), "marked.png")
    done = sandbox.backfire("once")
    assert done.returncode == 0, done.stderr
    assert sandbox.receipt("plain.png")["verdict"] == "unprotected"
    bug = sandbox.receipt("bugs/b.png")
    assert [(r["label"], r["detector"], r["score"]) for r in bug["regions"]] == [("bug", "fixed", 1.0)]
    assert "ended with code 1" in bug["skipped_detectors"]["command"]
    assert [r["label"] for r in sandbox.receipt("marked.png")["regions"]] == ["mark"]
    assert "marked.json" in sandbox.files("archive")
    assert bug["config_sha256"] != sandbox.receipt("plain.png")["config_sha256"]
    # Who asks for a copy at full size, too, drops the picture once more, where a rule says so.
    sizes = {name: sandbox.receipt(name)["width"] for name in ("plain.png", "full-size/plain.png")}
    assert sizes == {"plain.png": 96, "full-size/plain.png": photo().width}
    explained = json.loads(sandbox.backfire("explain", "bugs/b.png", "--json").stdout)
    assert explained["rule"] == "rules.0 (bugs/**)"
    assert json.loads(sandbox.backfire("explain", "plain.png", "--json").stdout)["rule"] is None
