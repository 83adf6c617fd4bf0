"""Editors that the configuration declares: what is checked at the start, and how they are loaded."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from backfire import config, inpaint, weights
from backfire.admin import check
from backfire.cli.commands import app
from backfire.config import Settings
from backfire.detectors import Source
from backfire.errors import ConfigError, ModelError
from backfire.inpaint.encoders import EncoderEditor, PairInpainter
from backfire.perturb import methods
from backfire.pipeline.run import Run
from backfire.service import preflight
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.sandbox import LENIENT, Sandbox
from tests.unit.inpaint.test_encoders import pair


def settings(base: Path, declared: dict[str, Any], **sections: Any) -> Settings:
    folders = {"inbox": "in"}
    data = {"folders": folders, "models": {"folder": "weights"}, "editors": declared, **sections}
    return config.parse(data, base=base)


CAPABILITIES = ("encode", "first_step", "attention_entropy")
TOY = {"kind": "latent", "weights": "toy"}


@pytest.mark.parametrize(
    ("declared", "sections", "says"),
    [
        ({"toy": {**TOY, "kind": "latnet"}}, {}, "editors.toy.kind: got 'latnet'; did you mean 'latent'"),
        ({"toy": {**TOY, "wieghts": "x"}}, {}, "option: got 'wieghts'; did you mean 'weights'"),
        ({"flux2-micro": TOY}, {}, "is built in"),
        ({"toy": {"kind": "latent", "weights": ["a", "b", "c"]}}, {}, "takes at most 2"),
        ({"toy": {"kind": "latent", "weights": "big-lama"}}, {}, "big-lama is of kind lama"),
        (
            {"toy": TOY},
            {"protect": {"surrogates": ["tyo"]}},
            "protect.surrogates: got 'tyo'; did you mean 'toy'",
        ),
        ({"toy": TOY}, {"verify": {"held_out": ["flux2-mni"]}}, "did you mean 'flux2-mini'"),
        (
            {},
            {"protect": {"surrogates": ["flux2-mini", "flux2-micro"]}},
            "verify.held_out: got flux2-micro, which is one of protect.surrogates .* held_out: \\[\\]",
        ),
    ],
)
def test_a_wrong_declaration_is_refused_at_start(
    tmp_path: Path, declared: dict[str, Any], sections: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        inpaint.require_known(settings(tmp_path, declared, **sections))


@pytest.mark.parametrize("kind", [*inpaint.KINDS])
def test_the_capabilities_of_a_kind_are_those_of_its_class(kind: str) -> None:
    """The registry repeats them so that the daemon can know them without torch."""
    known = inpaint.KINDS[kind]
    has = tuple(one for one in CAPABILITIES if hasattr(known.resolve(), one))
    assert known.capabilities == has


def test_the_registry_names_the_capabilities_of_the_built_in_editors(tmp_path: Path) -> None:
    for name in inpaint.NAMES:
        editor = inpaint.get(name)
        has = tuple(one for one in ("inpaint", *CAPABILITIES) if hasattr(editor, one))
        assert inpaint.capabilities(name, settings(tmp_path, {})) == has


def test_a_method_that_cannot_use_a_surrogate_is_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules are checked, too, and weights are not needed: those of this test do not exist."""
    monkeypatch.setattr("backfire.admin.check._pace", lambda _: "")  # times real edits
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

    assert refusal("implant", "lm") == refusal("encoder", "sd", "flux2-mini") == ""
    assert refusal("first-step", "sd") == ""
    assert "rules.0 (a/*): protect.method first-step: needs surrogates" in refusal("first-step", "flux2-mini")
    assert "lm does not; name editors of kind diffusion, flow, latent, inpainter" in refusal(
        "encoder", "sd", "lm"
    )
    assert "did you mean 'first-step'" in refusal("first_step", "sd")
    rule = {"match": "a/*", "protect": {"method": "encoder", "surrogates": ["lm"]}}
    findings = {one.subject: one for one in check.check(settings(tmp_path, declared, rules=[rule]))}
    finding = findings["rules.0 (a/*): method encoder"]
    assert not finding.ok
    assert "lm does not" in finding.remedy


def fetched(folder: Path, name: str) -> None:
    """Files under the names of a model of the catalogue, which hold nothing."""
    for file in weights.catalogue()[name].files:
        path = folder / name / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_auto_takes_the_default_and_every_editor_whose_weights_are_there(tmp_path: Path) -> None:
    def surrogates(declared: dict[str, Any], **sections: Any) -> tuple[str, ...] | str:
        return methods.with_surrogates(settings(tmp_path, declared, **sections)).protect.surrogates

    assert surrogates({}) == ("flux2-mini",)
    pair(tmp_path / "pair")
    toy = {"toy": {"kind": "latent", "weights": "pair"}, "gone": {"kind": "lama", "weights": "gone.pt"}}
    assert surrogates(toy) == ("flux2-mini", "toy")
    fetched(tmp_path / "weights", "taef2")
    fetched(tmp_path / "weights", "big-lama")
    (tmp_path / "weights" / "taesd").mkdir()
    assert surrogates(toy) == ("flux2-mini", "toy", "big-lama", "taef2")
    assert surrogates(toy, protect={"method": "encoder"}) == ("flux2-mini", "toy", "taef2")
    assert surrogates(toy, verify={"held_out": ["taef2", "flux2-mini"]}) == ("toy", "big-lama")
    mine = {"mine": {"kind": "inpainter", "weights": "taef2"}}
    assert surrogates(mine) == ("flux2-mini", "mine", "big-lama"), "no second editor from the same weights"
    named = {"surrogates": ["latent-mini"]}
    assert surrogates(toy, protect=named) == ("latent-mini",)


def test_auto_refuses_a_method_that_no_editor_here_can_use(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flux2-mini does not; name editors of kind flow"):
        preflight.require_names(settings(tmp_path, {}, protect={"method": "attention"}))


def test_hub_names_are_there_once_the_cache_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    declared = {"klein": {"kind": "flow", "weights": "somebody/klein"}}
    assert inpaint.present(settings(tmp_path, declared)) == ("flux2-mini",)
    (tmp_path / "hub" / "models--somebody--klein" / "snapshots" / "0").mkdir(parents=True)
    assert inpaint.present(settings(tmp_path, declared)) == ("flux2-mini", "klein")


def test_a_name_of_the_catalogue_is_an_editor_without_a_declaration(tmp_path: Path) -> None:
    named = settings(tmp_path, {}, protect={"surrogates": ["taef2"]})
    preflight.require_names(named)
    assert inpaint.capabilities("taef2", named) == ("inpaint", "encode")
    with pytest.raises(ModelError, match="backfire models fetch taef2"):
        inpaint.get("taef2", settings=named)


@pytest.mark.parametrize("value", ["flux2-mini", [], 3, [3]])
def test_surrogates_are_auto_or_a_list(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"protect\.surrogates: got .*, expected auto or a list of editors"):
        settings(tmp_path, {}, protect={"surrogates": value})


def test_check_says_the_surrogates_and_how_long_they_take(tmp_path: Path) -> None:
    quick = settings(tmp_path, {}, verify={"paths": ["iopaint"]})
    found = {one.subject: one for one in check.check(quick)}
    assert found["surrogates"].found == "flux2-mini"
    said = found["time for a picture"].found
    assert re.match(r"about [\d,]+ s for one region .* to judge with flux2-mini, flux2-micro;", said)
    assert found["time for a picture"].ok


def test_the_weights_of_a_surrogate_are_not_held_out_under_another_name(tmp_path: Path) -> None:
    """They would confirm what was made to break them, and nothing else told the two apart."""
    pair(tmp_path / "pair")
    shutil.copytree(tmp_path / "pair", tmp_path / "copied")
    declared = {name: {"kind": "latent", "weights": name} for name in ("pair", "copied")}
    asked = settings(
        tmp_path,
        declared,
        protect={"surrogates": ["pair"], "device": "cpu"},
        verify={"held_out": ["flux2-micro", "copied"]},
    )
    preflight.require_names(asked)
    said = r"verify\.held_out: got copied, whose weights are those of the surrogate pair, expected .*; name"
    run = Run(encoded(photo()), Source("a.png", ()), asked)
    for frugal in (False, True):
        with pytest.raises(ConfigError, match=said):
            run.load_editors(asked.protect, frugal=frugal)
    timed = {one.subject: one for one in check.check(asked)}["time for a picture"]
    assert not timed.ok
    assert "whose weights are those of the surrogate pair" in f"{timed.found} {timed.remedy}"
    apart = settings(
        tmp_path, declared, protect={"surrogates": ["pair"], "device": "cpu"}, verify={"held_out": []}
    )
    assert Run(run.data, run.source, apart).load_editors(apart.protect).surrogates


def test_an_editor_that_cannot_be_loaded_is_not_timed(tmp_path: Path) -> None:
    fetched(tmp_path / "weights", "taef2")
    found = {one.subject: one for one in check.check(settings(tmp_path, {}))}
    assert found["surrogates"].found == "flux2-mini, taef2"
    assert not found["editor taef2"].ok
    assert "time for a picture" not in found


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
        """Settings whose models folder holds random weights under that name, which were not fetched."""
        known = settings(tmp_path, {"toy": {"kind": "latent", "weights": name}})
        with pytest.raises(ModelError, match=f"backfire models fetch {name}"):
            inpaint.get("toy", settings=known)
        files = [tmp_path / "weights" / name / file.path for file in weights.catalogue()[name].files]
        files[0].parent.mkdir(parents=True)
        for source, target in zip(pair(tmp_path / "pair"), files, strict=True):
            target.write_bytes(source.read_bytes())
        return known

    assert inpaint.get("toy", settings=placed("taef1")).name == "toy", "of which no digest is published"
    with pytest.raises(ModelError, match=r"taef2_encoder.pth has changed, SHA-256 is .*, expected 10a4e1"):
        inpaint.get("toy", settings=placed("taef2"))


def test_the_error_for_missing_weights_names_the_catalogue(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file, nor a catalogue name"):
        inpaint.get("toy", settings=settings(tmp_path, {"toy": TOY}))


def test_the_digest_of_settings_depends_on_declarations_but_not_on_the_models_folder(tmp_path: Path) -> None:
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
def test_a_kind_has_options_where_its_class_takes_them(name: str) -> None:
    kind = inpaint.KINDS[name]
    taken = inspect.get_annotations(kind.resolve().load.__func__).get("options")
    assert taken == (kind.options and kind.options.__name__)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "diffusion", "steps": 0}, "editors.toy.steps: got 0, expected a whole number from 1"),
        ({"kind": "flow", "offload": "yes"}, "editors.toy.offload: got 'yes', expected true or false"),
        ({"kind": "flow", "dtype": "float16"}, "editors.toy.dtype: got 'float16'; did you mean 'bfloat16'?"),
        ({"kind": "torchscript", "multiple": "8"}, "editors.toy.multiple: got '8', expected whole pixels"),
    ],
)
def test_an_impossible_option_is_refused_at_start(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        inpaint.require_known(settings(tmp_path, {"toy": {"weights": "/absent/weights", **options}}))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", [name for name, kind in inpaint.KINDS.items() if kind.casts])
def test_a_format_that_a_kind_cannot_compute_in_is_refused_at_start(tmp_path: Path, name: str) -> None:
    """In float16, MAT computes no finite numbers."""
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
    plain.to("cpu")  # this also sets the memory format

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
        assert not torch.equal(plain.inpaint(picture, mask), single[0]), "it uses the caller's"


def test_check_has_lines_for_declared_editors(tmp_path: Path) -> None:
    pair(tmp_path / "pair")
    declared = {"toy": {"kind": "latent", "weights": "pair"}, "bad": {"kind": "latent", "weights": "gone"}}
    known = settings(tmp_path, declared, protect={"surrogates": ["toy"]}, verify={"held_out": ["bad"]})
    found = {finding.subject: finding for finding in check.check(known)}
    assert found["declared editors"].found == "toy, bad"
    assert found["editor toy"].ok
    assert "no such file" in found["editor bad"].remedy


def test_the_worker_protects_against_a_declared_editor(sandbox: Sandbox) -> None:
    """From the configuration through the daemon and its worker process to the receipt."""
    state = load_file(weights.INSIDE / "flux2-mini.safetensors")
    files = [f"{part}.safetensors" for part in ("encoder", "decoder", "net")]
    for file in files:
        part = f"{file.partition('.')[0]}."
        own = {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
        save_file(own, sandbox.base / file)
    sandbox.configure(
        editors={"own": {"kind": "inpainter", "weights": files}},
        regions={"detectors": ["sidecar"]},
        protect={
            "surrogates": ["own"],
            "method": "encoder",
            "iterations": 4,
            "margin_px": 16,
            "keep_region_exact": True,
        },
        verify=LENIENT,
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
    want = PairInpainter.load("own", [sandbox.base / file for file in files]).weights_sha256
    assert surrogate == {"name": "own", "weights_sha256": want}


def test_the_receipt_of_an_escalated_picture_says_so_and_it_is_verified_with_its_budget(
    sandbox: Sandbox,
) -> None:
    """No edit can meet the thresholds, so that the last round is reached."""
    configuration = sandbox.configure(
        regions={"detectors": ["sidecar"]},
        protect={
            "surrogates": ["flux2-mini"],
            "method": "encoder",
            "iterations": 1,
            "margin_px": 16,
            "whole_px": 0,
            "epsilon": 2,
            "escalate": ["subtle"],
        },
        verify={**LENIENT, "incomplete_l1_min": 1},
    )
    picture, mask, out = (sandbox.base / name for name in ("a.png", "m.png", "o.png"))
    photo().save(picture)
    mask_picture().save(mask)
    given = ("-m", str(mask), "-c", str(configuration), "--json")
    result = CliRunner().invoke(app, ["protect", str(picture), "-o", str(out), *given])
    assert result.stdout, result.stderr
    (receipt,) = json.loads(result.stdout)
    assert (receipt["epsilon"], receipt["rounds"]) == (8, [2])
    assert receipt["iterations_made"] == 1 + 80
    assert 2 < receipt["max_change_levels"] <= 8
    assert not any("budget" in reason for reason in receipt["reasons"])
    result = CliRunner().invoke(app, ["verify", str(out), "--original", str(picture), *given])
    assert result.stdout, result.stderr
    verified = json.loads(result.stdout)
    assert verified["verdict"] == receipt["verdict"]
    assert verified["reasons"] == receipt["reasons"], "the same edits are replayed, and the budget was kept"
