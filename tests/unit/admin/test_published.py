"""Receipt, original, masks and settings of a published picture are found, or it is said which is not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from backfire import config
from backfire.admin.explain import explain, reports_of
from backfire.admin.published import how_made, other_weights
from backfire.errors import ConfigError
from backfire.files import durable
from backfire.service.store.reader import Reader
from backfire.service.worker.protocol import Finished, Order
from backfire.types import Verdict, mask_digest
from benchmarks import passthrough
from tests.support.house import House, house
from tests.support.pictures import encoded, mask_picture, photo

__all__ = ["house"]


@pytest.fixture
def home(house: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> House:
    """A house in which desk/me.png was published with a mask; the result is not the original."""

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        done = passthrough.process(order, progress)
        data = (order.folder / "input").read_bytes()
        receipt = json.loads((order.folder / "receipt.json").read_text())
        masks = [hashlib.sha256((order.folder / file).read_bytes()).hexdigest() for _, file in order.masks]
        sha256 = hashlib.sha256(data + b"protected").hexdigest()
        (order.folder / "output").write_bytes(data + b"protected")
        receipt |= {
            "verdict": "protected",
            "input_sha256": hashlib.sha256(data).hexdigest(),
            "output_sha256": sha256,
            "mask_sha256": mask_digest(masks),
            "config_sha256": order.settings.sha256,
            "method": "implant",
            "epsilon": 4.0,
            "surrogates": [{"name": "flux2-mini"}],
            "held_out": [{"name": "texture"}],
        }
        (order.folder / "receipt.json").write_text(json.dumps(receipt))
        return replace(done, verdict=Verdict.PROTECTED, output_sha256=sha256)

    sections = {
        "watch": {"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1},
        "regions": {"detectors": ["faces"]},
    }
    home = house(**sections)
    home.process = process
    monkeypatch.chdir(home.base.parent)
    configure(home, limits={"free_mb": 0}, **sections)
    desk = home.base / "inbox" / "desk"
    desk.mkdir()
    (desk / "me.png").write_bytes(encoded(photo()))
    (desk / "me.mask.png").write_bytes(encoded(mask_picture((160, 128))))
    home.turn(times=8)
    assert home.states() == ["archived"]
    return home


def configure(home: House, **sections: object) -> None:
    text = yaml.safe_dump({"folders": {"inbox": "inbox"}, **sections})
    (home.base / "config.yaml").write_text(text)


def published(home: House) -> Path:
    return home.base / "outbox" / "desk" / "me.png"


def test_the_published_file_alone_is_enough(home: House) -> None:
    made = how_made(published(home))
    assert made.original == home.base / "archive" / "desk" / "me.png"
    assert made.masks == [home.base / "archive" / "desk" / "me.mask.png"]
    assert (made.receipt["file"], made.changed) == ("desk/me.png", False)
    assert made.settings is not None
    assert made.settings.sha256 == home.settings.sha256


def test_a_copy_elsewhere_is_known_by_its_digest(
    home: House, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("downloads") / "picture.png"
    copy.write_bytes(published(home).read_bytes())
    assert how_made(copy, home.base / "config.yaml").original == home.base / "archive" / "desk" / "me.png"
    with pytest.raises(ConfigError, match=r"picture\.png: there is no receipt beside it.*name one with -c"):
        how_made(copy)


def test_without_the_database_the_receipt_of_its_place_is_read(home: House) -> None:
    home.crash()
    home.settings.folders.database.unlink()
    assert how_made(published(home)).original == home.base / "archive" / "desk" / "me.png"


def test_what_was_written_beside_the_result_is_read_without_a_configuration(tmp_path: Path) -> None:
    original, result = encoded(photo()), encoded(photo(seed=2))
    (tmp_path / "me.png").write_bytes(original)
    (tmp_path / "out.png").write_bytes(result)
    digests = [hashlib.sha256(data).hexdigest() for data in (original, result)]
    receipt = {"file": "me.png", "input_sha256": digests[0], "output_sha256": digests[1], "mask_sha256": None}
    (tmp_path / "out.png.receipt.json").write_text(json.dumps(receipt))
    made = how_made(tmp_path / "out.png")
    assert (made.original, made.masks, made.settings) == (tmp_path / "me.png", [], None)


def test_without_the_archive_the_original_is_asked_for(home: House) -> None:
    home.settings.folders.archive.rename(home.base / "elsewhere")
    with pytest.raises(ConfigError, match=r"no file with SHA-256 .*archive; name it with --original"):
        how_made(published(home))


def test_a_result_that_was_put_in_place_by_hand_is_known_with_its_reports(home: House) -> None:
    """As in the documentation: `backfire protect` made another of the original, and three files are moved."""
    with Reader(home.settings.folders.database) as store:
        (job,) = store.jobs()
    reports = home.base / "reports" / "desk"
    receipt = json.loads((reports / "me.png.json").read_text())
    result = encoded(photo(seed=3))
    published(home).write_bytes(result)
    by_hand = {"file": "me.png", "output": "new.png", "key": "0ddba11", "config_sha256": "of another"}
    by_hand["output_sha256"] = hashlib.sha256(result).hexdigest()
    (reports / "me.png.json").write_text(json.dumps(receipt | by_hand))
    (reports / "me.png.sheet.jpg").write_bytes(b"its sheet")
    made = how_made(published(home))
    assert made.original == home.base / "archive" / "desk" / "me.png"
    assert made.masks == [home.base / "archive" / "desk" / "me.mask.png"]
    assert (made.receipt["output"], made.changed) == ("new.png", True)
    both = [str(reports / name) for name in ("me.png.json", "me.png.sheet.jpg")]
    assert reports_of(job, home.settings) == both
    (reports / "me.png.json").write_text(json.dumps(receipt | by_hand | {"input_sha256": "5" * 64}))
    assert reports_of(job, home.settings) == []  # it is of another original


def test_what_is_done_is_explained_without_a_look_into_the_inbox(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("the inbox is not looked into")

    monkeypatch.setattr("backfire.files.inbox.scan_beside", refused)
    with Reader(home.settings.folders.database) as store:
        told = explain(published(home), home.settings, home.base / "config.yaml", store)
    assert "desk/me.png: is done; the result is" in told.waits_for


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], Path]:
    """Writes what `backfire protect -m` leaves; its receipt remembers that name of the mask."""
    monkeypatch.chdir(tmp_path)

    def write(remembered: str | None) -> Path:
        files = {"me.png": encoded(photo()), "out.png": encoded(photo(seed=2))}
        files["masks/poster.png"] = encoded(mask_picture())
        (tmp_path / "masks").mkdir()
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        digests = [hashlib.sha256(data).hexdigest() for data in files.values()]
        named = dict(zip(("input_sha256", "output_sha256", "mask_sha256"), digests, strict=True))
        receipt = {"file": "me.png", **named, "config_sha256": "of the defaults"}
        receipt |= {} if remembered is None else {"mask": remembered}
        (tmp_path / "out.png.receipt.json").write_text(json.dumps(receipt))
        return tmp_path / "out.png"

    return write


@pytest.mark.parametrize("absolute", [False, True])
def test_a_mask_that_is_named_is_enough(by_hand: Callable[[str | None], Path], absolute: bool) -> None:
    result = by_hand(None)
    with pytest.raises(ConfigError, match="name it with -m"):
        how_made(result)
    mask = Path("masks/poster.png")
    mask = mask.absolute() if absolute else mask
    assert (how_made(result, mask=mask).original, how_made(result, mask=mask).masks) == (
        result.parent / "me.png",
        [mask],
    )


def test_another_mask_than_that_of_the_receipt_is_refused(by_hand: Callable[[str | None], Path]) -> None:
    result = by_hand("masks/poster.png")
    for name, why in (("me.png", "it is another mask or was changed"), ("none.png", "cannot be read")):
        with pytest.raises(ConfigError, match=rf"mask {name}: .*{why}"):
            how_made(result, mask=Path(name))
    receipt = json.loads((result.parent / "out.png.receipt.json").read_text())
    (result.parent / "out.png.receipt.json").write_text(json.dumps({**receipt, "mask_sha256": None}))
    with pytest.raises(ConfigError, match=r"was made without a mask; leave -m away"):
        how_made(result, mask=Path("masks/poster.png"))


def test_the_mask_that_the_receipt_remembers_is_found_by_its_digest(
    by_hand: Callable[[str | None], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = by_hand("masks/poster.png")
    assert how_made(result).masks == [Path("masks/poster.png")], "as it was given"
    folder = result.parent.parent
    monkeypatch.chdir(folder)
    assert how_made(result).masks == [result.parent / "masks" / "poster.png"], "all of it was moved together"
    (result.parent / "masks" / "poster.png").rename(result.parent / "poster.png")
    assert how_made(result).masks == [result.parent / "poster.png"], "beside the result"
    (result.parent / "poster.png").write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"poster\.png differs from it; name it with -m"):
        how_made(result)


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        ({"mask_sha256": 5}, "mask_sha256"),
        ({"mask_sha256": "\x1b]0;pwn\x07"}, "mask_sha256"),
        ({"input_sha256": "../a"}, "input_sha256"),
        ({"key": "a/../b"}, "key"),
        ({"mask": 5}, "mask"),
        ({"file": 5}, "file"),
        ({"file": "a\0b"}, "file"),
        ({"file": "\ud800"}, "file"),
        ({"file": "/etc/passwd"}, "file"),
        ({"file": "../../etc/passwd"}, "file"),
        ({"scaled_from": [800, 600]}, "scaled_from"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"surrogates": ["flux2-mini"]}, "surrogates"),
        ({"edits": [{"mask_kind": "trigger", "held_out": False, "visible": 1.0}]}, "edits"),
    ],
    ids=repr,
)
def test_a_hostile_receipt_beside_a_picture_is_refused_in_words(
    by_hand: Callable[[str | None], Path], damage: dict[str, object], where: str
) -> None:
    result = by_hand("masks/poster.png")
    beside = result.parent / "out.png.receipt.json"
    beside.write_text(json.dumps(json.loads(beside.read_text()) | damage))
    with pytest.raises(
        ConfigError, match=rf"^receipt .*{where}.*; name the picture with --original$"
    ) as told:
        how_made(result, mask=Path("masks/poster.png"))
    assert str(told.value).isprintable()


def test_a_receipt_that_is_no_file_or_nested_without_end_is_refused(
    by_hand: Callable[[str | None], Path],
) -> None:
    result = by_hand(None)
    beside = result.parent / "out.png.receipt.json"
    beside.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="cannot be read"):
        how_made(result)
    beside.unlink()
    os.mkfifo(beside)  # opening it would wait for ever
    with pytest.raises(ConfigError, match="no regular file"):
        how_made(result)


@pytest.mark.parametrize("mask", ["a\0b", "\ud800", "{absolute}", "../outside.png", "x/../../outside.png"])
def test_a_hostile_name_of_a_mask_leads_nowhere(by_hand: Callable[[str | None], Path], mask: str) -> None:
    """Not even to a file with the digest of the mask: others would be read, and named in the message."""
    result = by_hand("masks/poster.png")
    outside = result.parent.parent / "outside.png"
    (result.parent / "masks" / "poster.png").rename(outside)
    beside = result.parent / "out.png.receipt.json"
    named = {"mask": mask.format(absolute=outside)}
    beside.write_text(json.dumps(json.loads(beside.read_text()) | named))
    with pytest.raises(ConfigError, match=r"(none lies beside .*; name it with -m|mask: Input should be)"):
        how_made(result)


def test_a_mask_that_may_not_be_read_does_not_end_the_search(
    by_hand: Callable[[str | None], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the right one, in the working folder, lies one of the same name."""
    result = by_hand("masks/poster.png")
    elsewhere = result.parent / "elsewhere"
    (elsewhere / "masks").mkdir(parents=True)
    (elsewhere / "masks" / "poster.png").touch()
    monkeypatch.chdir(elsewhere)
    digest = durable.file_sha256

    def guarded(file: bytes | Path) -> str:
        if os.fsdecode(file) == "masks/poster.png":  # root may read what the mode forbids
            raise PermissionError(13, "Permission denied", str(file))
        return digest(file)

    monkeypatch.setattr(durable, "file_sha256", guarded)
    assert how_made(result).masks == [result.parent / "masks" / "poster.png"]


def test_the_configuration_of_the_working_folder_is_used(
    home: House, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy elsewhere is found by its digest, as if -c had named the configuration."""
    copy = tmp_path_factory.mktemp("downloads") / "picture.png"
    copy.write_bytes(published(home).read_bytes())
    monkeypatch.chdir(home.base)
    made = how_made(copy)
    assert made.original == home.base / "archive" / "desk" / "me.png"
    assert made.settings is not None
    assert made.settings.sha256 == home.settings.sha256
    copy.write_bytes(b"unknown")
    with pytest.raises(ConfigError, match=r"reports, the reports of config\.yaml; name another"):
        how_made(copy)


def test_what_was_made_by_hand_is_not_judged_by_a_configuration_that_nobody_named(
    by_hand: Callable[[str | None], Path],
) -> None:
    """`backfire protect` without -c uses the defaults, whatever lies in the working folder."""
    result = by_hand("masks/poster.png")
    Path("config.yaml").write_text(yaml.safe_dump({"folders": {"inbox": "in"}, "protect": {"epsilon": 3}}))
    made = how_made(result)
    assert (made.settings, made.changed) == (None, False)
    named = how_made(result, Path("config.yaml"))
    assert named.settings is not None
    assert (named.settings.protect.epsilon, named.changed) == (3, True)


CODE: dict[str, dict[str, object]] = {
    "regions.detectors: command": {
        "regions": {"detectors": ["command"], "command": {"argv": ["no-program"]}}
    },
    "regions.detectors: torchscript": {"regions": {"detectors": ["torchscript"]}},
    "editors.own": {"editors": {"own": {"kind": "torchscript", "weights": "own.pt", "trust": True}}},
    "editors.hub": {"editors": {"hub": {"kind": "diffusion", "weights": "somebody/some-pipeline"}}},
}


@pytest.mark.parametrize("what", CODE)
def test_programs_of_a_configuration_that_nobody_named_are_refused(
    by_hand: Callable[[str | None], Path], what: str
) -> None:
    """Receipt and configuration may have come in the same archive as the picture, with digests that fit."""
    result, file = by_hand("masks/poster.png"), Path("config.yaml")
    file.write_text(yaml.safe_dump({"folders": {"inbox": "in"}, **CODE[what]}))
    beside = result.parent / "out.png.receipt.json"
    receipt = json.loads(beside.read_text())
    beside.write_text(json.dumps({**receipt, "config_sha256": config.load(file).sha256}))
    with pytest.raises(ConfigError, match=rf"config\.yaml, .*code \({what}\).*name it with -c config\.yaml"):
        how_made(result)
    named = how_made(result, file)
    assert named.settings is not None
    assert (named.settings.sha256, named.changed) == (config.load(file).sha256, False)


def test_programs_of_the_configuration_above_an_outbox_are_refused(home: House) -> None:
    """Whether or not its settings are still those that the receipt names."""
    how_made(published(home))
    configure(home, **CODE["regions.detectors: command"])
    with pytest.raises(ConfigError, match=r"names programs or models that are code"):
        how_made(published(home))
    assert how_made(published(home), home.base / "config.yaml").changed


def test_a_configuration_of_another_program_is_left_aside(
    by_hand: Callable[[str | None], Path],
) -> None:
    result = by_hand("masks/poster.png")
    Path("config.yaml").write_text("folders: {inbox: in}\nbaseURL: https://example.org\n")
    made = how_made(result)
    (why,) = made.unusable
    assert why.startswith("config.yaml cannot be used (unknown key 'baseURL'")
    (result.parent / "out.png.receipt.json").unlink()
    with pytest.raises(ConfigError, match=r"as config\.yaml cannot be used \(.*'baseURL'.*name one with -c"):
        how_made(result)
    with pytest.raises(ConfigError, match="unknown key 'baseURL'"):
        how_made(result, Path("config.yaml"))


def test_a_path_with_dots_leads_to_the_same_configuration(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.base / "archive" / "desk")
    made = how_made(Path("../../outbox/desk/me.png"))
    assert made.original == home.base / "archive" / "desk" / "me.png"
    home.crash()
    home.settings.folders.database.unlink()
    assert how_made(Path("../../outbox/desk/me.png")).original == made.original


@pytest.mark.parametrize("named", [False, True])
def test_a_format_that_the_results_name_asked_for_is_no_change_of_the_settings(
    by_hand: Callable[[str | None], Path], named: bool
) -> None:
    """`backfire protect me.jpg -o out.png` writes a PNG, whatever `output.format` says."""
    result, file = by_hand("masks/poster.png"), Path("config.yaml")
    file.write_text(yaml.safe_dump({"folders": {"inbox": "in"}, "protect": {"epsilon": 3}}))
    used = config.load(file)
    as_png = used.model_copy(update={"output": used.output.model_copy(update={"format": "png"})})
    assert as_png.sha256 != used.sha256
    beside = result.parent / "out.png.receipt.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "config_sha256": as_png.sha256}))
    made = how_made(result, file if named else None)
    assert made.settings is not None
    assert (made.settings.protect.epsilon, made.changed) == (3, False)


def test_changed_settings_are_told_and_the_editors_are_those_of_the_receipt(home: House) -> None:
    configure(
        home, regions={"detectors": ["faces"]}, protect={"epsilon": 9}, verify={"trigger_ssim_max": 0.5}
    )
    made = how_made(published(home))
    assert made.changed
    assert made.settings is not None
    assert (made.settings.protect.epsilon, made.settings.protect.surrogates) == (4.0, ("flux2-mini",))
    assert made.settings.verify.held_out == ("texture",)
    assert made.settings.verify.trigger_ssim_max == 0.5, "thresholds are today's"


def test_an_original_that_was_moved_away_is_named(home: House) -> None:
    moved = home.base / "archive" / "desk" / "renamed.png"
    (home.base / "archive" / "desk" / "me.png").rename(moved)
    with pytest.raises(
        ConfigError, match=r"original desk/me\.png of .*name it with --original, or put it back"
    ):
        how_made(published(home))


def test_what_is_missing_or_another_is_named(home: House) -> None:
    archive = home.base / "archive" / "desk"
    mask = (archive / "me.mask.png").read_bytes()
    (archive / "me.mask.png").write_bytes(encoded(mask_picture((64, 64))))
    with pytest.raises(
        ConfigError, match=r"mask of .*me\.png: .*me\.mask\.png differs from it; name it with -m"
    ):
        how_made(published(home))
    (archive / "me.mask.png").unlink()
    with pytest.raises(ConfigError, match=r"mask of .*me\.png: .*none lies beside"):
        how_made(published(home))
    (archive / "me.mask.png").write_bytes(mask)
    (archive / "me.png").write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"me\.png has SHA-256 .*, its receipt says .*--original"):
        how_made(published(home))
    with published(home).open("ab") as file:
        file.write(b"edited")
    with pytest.raises(ConfigError, match=r"has SHA-256 .*it was changed after it was published"):
        how_made(published(home))
    with pytest.raises(ConfigError, match=r"nothing\.png: cannot be read"):
        how_made(home.base / "nothing.png")


def test_editors_of_other_weights_are_named() -> None:
    def receipt(mini: str, micro: str) -> dict[str, Any]:
        return {
            "surrogates": [{"name": "flux2-mini", "weights_sha256": mini}],
            "held_out": [{"name": "flux2-micro", "weights_sha256": micro}],
        }

    assert other_weights(receipt("a", "b"), receipt("a", "b")) == []
    assert other_weights(receipt("a", "b"), receipt("c", "b")) == ["flux2-mini"]
    assert other_weights(receipt("a", "b"), receipt("c", "d")) == ["flux2-micro", "flux2-mini"]
    assert other_weights({}, receipt("a", "b")) == [], "of a receipt that names none nothing is known"
