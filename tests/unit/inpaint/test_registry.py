"""Editors that the configuration declares: what is checked at start, and how they are found."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire import config, inpaint, weights
from backfire.admin import check
from backfire.config import Settings
from backfire.errors import ConfigError, ModelError
from backfire.inpaint.encoders import EncoderEditor
from backfire.service import preflight
from tests.support.pictures import mask_picture, photo
from tests.support.sandbox import Sandbox
from tests.unit.inpaint.test_encoders import pair


def settings(base: Path, declared: dict[str, Any], **sections: Any) -> Settings:
    folders = {"inbox": "in"}
    data = {"folders": folders, "models": {"folder": "weights"}, "editors": declared, **sections}
    return config.parse(data, base=base)


TOY = {"kind": "latent", "weights": "toy"}


@pytest.mark.parametrize(
    ("declared", "sections", "says"),
    [
        ({"toy": {**TOY, "kind": "latnet"}}, {}, "editors.toy.kind: got 'latnet'; did you mean 'latent'"),
        ({"toy": {**TOY, "wieghts": "x"}}, {}, "option: got 'wieghts'; did you mean 'weights'"),
        ({"latent-mini": TOY}, {}, "is built in"),
        ({"toy": {"kind": "latent", "weights": ["a", "b", "c"]}}, {}, "takes at most 2"),
        ({"toy": {"kind": "latent", "weights": "big-lama"}}, {}, "big-lama is of kind lama"),
        (
            {"toy": TOY},
            {"protect": {"surrogates": ["tyo"]}},
            "protect.surrogates: got 'tyo'; did you mean 'toy'",
        ),
        ({"toy": TOY}, {"verify": {"held_out": ["latent-mni"]}}, "did you mean 'latent-mini'"),
    ],
)
def test_a_wrong_declaration_is_refused_at_start(
    tmp_path: Path, declared: dict[str, Any], sections: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        inpaint.require_known(settings(tmp_path, declared, **sections))


@pytest.mark.parametrize("kind", [*inpaint.KINDS])
def test_the_capabilities_of_a_kind_are_those_of_its_class(kind: str) -> None:
    """They are written down so that the daemon need not load torch to know them."""
    known = inpaint.KINDS[kind]
    has = tuple(one for one in ("encode", "first_step") if hasattr(known.resolve(), one))
    assert known.capabilities == has


def test_the_capabilities_of_the_built_in_editors_are_theirs(tmp_path: Path) -> None:
    for name in inpaint.NAMES:
        editor = inpaint.get(name)
        has = tuple(one for one in ("inpaint", "encode", "first_step") if hasattr(editor, one))
        assert inpaint.capabilities(name, settings(tmp_path, {})) == has


def test_a_method_that_cannot_use_a_surrogate_is_refused_at_start(tmp_path: Path) -> None:
    """In a rule too, and without the weights, which are not there."""
    declared = {
        "lm": {"kind": "lama", "weights": "/absent/lama.pt"},
        "sd": {"kind": "diffusion", "weights": "/absent/sd"},
    }

    def refusal(method: str, *surrogates: str) -> str:
        rule = {"match": "a/*", "protect": {"method": method, "surrogates": list(surrogates)}}
        try:
            preflight.require_names(settings(tmp_path, declared, rules=[rule]))
        except ConfigError as error:
            return str(error)
        return ""

    assert refusal("implant", "lm") == refusal("encoder", "sd", "latent-mini") == ""
    assert refusal("first-step", "sd") == ""
    assert "rules.0 (a/*): protect.method first-step: needs surrogates" in refusal(
        "first-step", "latent-mini"
    )
    assert "lm does not; name editors of kind diffusion, latent, inpainter" in refusal("encoder", "sd", "lm")
    assert "did you mean 'first-step'" in refusal("first_step", "sd")
    rule = {"match": "a/*", "protect": {"method": "encoder", "surrogates": ["lm"]}}
    findings = {one.subject: one for one in check.check(settings(tmp_path, declared, rules=[rule]))}
    finding = findings["rules.0 (a/*): method encoder"]
    assert not finding.ok
    assert "lm does not" in finding.remedy


@pytest.mark.parametrize(
    ("declared", "says"),
    [({"toy": {"kind": "latent"}}, "'editors.toy.weights' is missing"), ({"toy": 3}, "editors.toy")],
)
def test_an_incomplete_declaration_is_a_config_error(tmp_path: Path, declared: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(tmp_path, declared)


def test_weights_are_a_path_from_the_file_or_a_name(tmp_path: Path) -> None:
    pair(tmp_path / "pair")
    said = {"a": "pair", "b": "./gone", "c": "taef2", "d": ["pair/toy_encoder.pth", "~/x"]}
    found = settings(tmp_path, {name: {"kind": "latent", "weights": w} for name, w in said.items()}).editors
    assert found["a"].weights == (str(tmp_path / "pair"),)
    assert found["b"].weights == (str(tmp_path / "gone"),)
    assert found["c"].weights == ("taef2",)
    assert found["d"].weights == (str(tmp_path / "pair/toy_encoder.pth"), str(Path("~/x").expanduser()))


def test_a_declared_editor_is_loaded_once(tmp_path: Path) -> None:
    pair(tmp_path / "pair")
    known = settings(tmp_path, {"toy": {"kind": "latent", "weights": "pair"}})
    editor = inpaint.get("toy", settings=known)
    assert isinstance(editor, EncoderEditor)
    assert editor.name == "toy"
    assert inpaint.get("toy", settings=known) is editor
    other = settings(
        tmp_path, {"toy": {"kind": "latent", "weights": ["pair/toy_encoder.pth", "pair/toy_decoder.pth"]}}
    )
    assert inpaint.get("toy", settings=other) is not editor


def test_a_catalogue_name_is_looked_for_in_the_models_folder(tmp_path: Path) -> None:
    def placed(name: str) -> Settings:
        """Weights of our own under that name, put there by hand."""
        known = settings(tmp_path, {"toy": {"kind": "latent", "weights": name}})
        with pytest.raises(ModelError, match=f"backfire models fetch {name}"):
            inpaint.get("toy", settings=known)
        files = [tmp_path / "weights" / name / file.path for file in weights.catalogue()[name].files]
        files[0].parent.mkdir(parents=True)
        for source, target in zip(pair(tmp_path / "pair"), files, strict=True):
            target.write_bytes(source.read_bytes())
        return known

    assert inpaint.get("toy", settings=placed("taesd3")).name == "toy", "of which no digest is published"
    with pytest.raises(ModelError, match=r"taef2_encoder.pth has changed, SHA-256 is .*, expected 10a4e1"):
        inpaint.get("toy", settings=placed("taef2"))


def test_weights_that_are_nowhere_name_the_catalogue(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file, nor a catalogue name"):
        inpaint.get("toy", settings=settings(tmp_path, {"toy": TOY}))


def test_the_digest_covers_declarations_and_no_folder(tmp_path: Path) -> None:
    plain, one = settings(tmp_path, {}), settings(tmp_path, {"toy": TOY})
    assert one.sha256 != plain.sha256
    assert settings(tmp_path, {"toy": {**TOY, "weights": "other"}}).sha256 != one.sha256
    assert settings(tmp_path, {"toy": TOY}, models={"folder": "elsewhere"}).sha256 == one.sha256


@pytest.mark.parametrize("folder", ["in", "in/weights", "outbox", "."])
def test_weights_lie_outside_every_watched_folder(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ConfigError, match=r"models.folder .* lie inside each other"):
        settings(tmp_path, {}, models={"folder": folder})
    assert (
        settings(tmp_path, {}, models={"folder": "state/models"}).models.folder == tmp_path / "state/models"
    )


def test_the_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    assert config.Models().folder == Path("/srv/data/backfire/models")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert config.Models().folder == Path("~/.local/share/backfire/models").expanduser()


@pytest.mark.parametrize("name", inpaint.KINDS)
def test_a_kind_names_the_options_its_class_takes(name: str) -> None:
    """So that a misspelt option is refused at start, where torch is not loaded."""
    kind = inpaint.KINDS[name]
    load = kind.resolve().load
    taken = [p.name for p in inspect.signature(load).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert tuple(taken) == kind.options


@pytest.mark.parametrize("name", [name for name, kind in inpaint.KINDS.items() if kind.casts])
def test_a_format_that_a_kind_cannot_compute_in_is_refused_at_start(tmp_path: Path, name: str) -> None:
    """MAT gives no numbers in float16."""
    declared = {"toy": {"kind": name, "weights": "/absent/weights", "dtype": "float16"}}
    with pytest.raises(ConfigError, match=r"editors.toy.dtype: got 'float16'; did you mean 'b?float"):
        inpaint.require_known(settings(tmp_path, declared))


def test_an_editor_computes_in_its_own_format_whatever_its_caller_does(tmp_path: Path) -> None:
    pair(tmp_path / "pair")
    toy = {"kind": "latent", "weights": "pair"}
    known = settings(tmp_path, {f"in-{dtype}": {**toy, "dtype": dtype} for dtype in inpaint.ARITHMETIC})
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 1, 64, 64)
    plain = EncoderEditor.load("toy", tmp_path / "pair")
    plain.to("cpu")  # which brings the same memory format

    def answers(editor: EncoderEditor) -> list[torch.Tensor]:
        return [editor.inpaint(picture, mask), editor.encode(picture, mask)]

    single = answers(plain)
    for dtype in inpaint.ARITHMETIC:
        editor = inpaint.get(f"in-{dtype}", settings=known)
        assert isinstance(editor, EncoderEditor)
        alone = answers(editor)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(torch.equal(a, b) for a, b in zip(answers(editor), alone, strict=True))
        assert all(a.dtype == torch.float32 for a in alone)
        assert torch.equal(alone[0], single[0]) == (dtype == "float32")
        for got, want in zip(alone, single, strict=True):
            assert (got - want).abs().mean() < 0.02 * want.std()
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(plain.inpaint(picture, mask), single[0]), "without one it is the caller's"


def test_check_tells_of_declared_editors(tmp_path: Path) -> None:
    pair(tmp_path / "pair")
    declared = {"toy": {"kind": "latent", "weights": "pair"}, "bad": {"kind": "latent", "weights": "gone"}}
    known = settings(tmp_path, declared, protect={"surrogates": ["toy"]}, verify={"held_out": ["bad"]})
    found = {finding.subject: finding for finding in check.check(known)}
    assert found["declared editors"].found == "toy, bad"
    assert found["editor toy"].ok
    assert "no such file" in found["editor bad"].remedy


def test_the_worker_protects_against_a_declared_editor(sandbox: Sandbox) -> None:
    """The whole way: configuration, daemon, child process, receipt."""
    pair(sandbox.base / "pair")
    lenient = {"trigger_ssim_max": 1, "incomplete_ssim_max": 1, "trigger_l1_min": 0, "incomplete_l1_min": 0}
    sandbox.configure(
        editors={"toy": {"kind": "latent", "weights": "pair"}},
        regions={"detectors": ["sidecar"]},
        protect={
            "surrogates": ["toy"],
            "method": "encoder",
            "iterations": 1,
            "margin_px": 16,
            "keep_region_exact": True,
        },
        verify={**lenient, "near_ssim_min": 0, "far_ssim_min": 0, "control_factor": 0},
    )
    photo().save(sandbox.inbox / "a.png")
    mask_picture().save(sandbox.inbox / "a.mask.png")
    result = sandbox.backfire("once")
    assert result.returncode == 0, result.stderr
    receipt = sandbox.receipt("a.png")
    assert (receipt["method"], receipt["region_change_levels"]) == ("encoder", 0)
    assert receipt["max_change_levels"] > 0
    (surrogate,) = receipt["surrogates"]
    assert surrogate.pop("gradient") > 0
    want = EncoderEditor.load("toy", sandbox.base / "pair").weights_sha256
    assert surrogate == {"name": "toy", "weights_sha256": want}


def test_a_picture_that_was_escalated_says_so_and_is_verified_with_its_budget(sandbox: Sandbox) -> None:
    """No editor breaks as asked here, so that the last round is reached."""
    pair(sandbox.base / "pair")
    configuration = sandbox.configure(
        editors={"toy": {"kind": "latent", "weights": "pair"}},
        regions={"detectors": ["sidecar"]},
        protect={
            "surrogates": ["toy"],
            "method": "encoder",
            "iterations": 1,
            "margin_px": 16,
            "whole_px": 0,
            "epsilon": 2,
            "escalate": ["subtle"],
        },
        verify={"trigger_ssim_max": 1, "trigger_l1_min": 0, "incomplete_l1_min": 1, "control_factor": 0},
    )
    picture, mask, out = (sandbox.base / name for name in ("a.png", "m.png", "o.png"))
    photo().save(picture)
    mask_picture().save(mask)
    given = ("-m", str(mask), "-c", str(configuration), "--json")
    result = sandbox.backfire("protect", str(picture), "-o", str(out), *given)
    assert result.stdout, result.stderr
    (receipt,) = json.loads(result.stdout)
    assert (receipt["epsilon"], receipt["rounds"]) == (4, [2])
    assert receipt["iterations_made"] == 1 + 80
    assert 2 < receipt["max_change_levels"] <= 4
    assert not any("budget" in reason for reason in receipt["reasons"])
    result = sandbox.backfire("verify", str(out), "--original", str(picture), *given)
    assert result.stdout, result.stderr
    verified = json.loads(result.stdout)
    assert verified["verdict"] == receipt["verdict"]
    assert verified["reasons"] == receipt["reasons"], "the same edits, and a budget that was kept"
