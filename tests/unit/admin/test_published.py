"""Receipt, original, masks and settings of a published picture are found, or it is said which is not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from backfire.admin.published import how_made
from backfire.errors import ConfigError
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
