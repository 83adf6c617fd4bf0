"""What docs/install.md says of backups: with the folders and without `state/` the daemon goes on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from backfire.admin.audit import audit
from backfire.errors import Code, InputError
from backfire.service.worker.protocol import Finished, Order
from benchmarks import passthrough
from tests.support import nothing_found
from tests.support.house import SOON, House

INSTALL = (Path(__file__).parents[2] / "docs" / "install.md").read_text()


def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
    """Finds nothing in `held.png`, cannot read `bad.png`, and protects any other picture."""
    if order.name == "bad.png":
        raise InputError(Code.TRUNCATED, "bad.png: cannot be read")
    if order.name == "held.png":
        return nothing_found.process(order, progress)
    return passthrough.process(order, progress)


@pytest.fixture
def lived(house: Callable[..., House]) -> House:
    """A daemon that has published a picture, holds one, has set one aside, and has not begun another."""
    home = house(watch=SOON)
    home.process = process
    home.drop("done.png", "held.png", "bad.png")
    home.turn(times=20)
    assert sorted(home.states()) == ["archived", "failed", "review"]
    home.drop("new.png")
    home.crash()
    return home


def kept(home: House) -> dict[str, dict[str, bytes]]:
    return {name: home.files(name) for name in ("inbox", "outbox", "archive", "failed", "review")}


def restored(lived: House, tmp_path: Path, *, state: bool) -> House:
    """A daemon on copies of the folders that the page names."""
    page = INSTALL.partition("## Back up\n")[2].partition("\n## ")[0]
    named = {*re.findall(r"`(\w+)/`", page.partition("Hidden files")[0]), "inbox"}
    assert named == set(lived.settings.folders.named())
    for name in named - set([] if state else ["state"]):
        shutil.copytree(lived.base / name, tmp_path / "restored" / name)
    home = House(tmp_path / "restored", watch=SOON)
    home.process = process
    return home


def test_without_the_state_nothing_is_published_again_and_the_rest_can_be_worked(
    lived: House, tmp_path: Path
) -> None:
    before = kept(lived)
    home = restored(lived, tmp_path, state=False)
    home.turn(times=20)
    after = kept(home)
    assert set(after["outbox"]) == {"done.png", "new.png"}
    assert after["outbox"]["done.png"] == before["outbox"]["done.png"]
    assert after["archive"] == {**before["archive"], "new.png": before["inbox"]["new.png"]}
    assert after["failed"] == before["failed"]
    assert after["review"] == before["review"]
    found = audit(home.settings, home.service.jobs.store.jobs)
    assert found.files == 4
    assert found.findings == ()
    # What nobody lists any more is worked again when it is moved back.
    (home.base / "failed" / "bad.png").rename(home.base / "inbox" / "good.png")
    (home.base / "review" / "held.png").rename(home.base / "inbox" / "held.png")
    home.turn(times=20)
    assert sorted(home.states()) == ["archived", "archived", "review"]
    home.crash()


def test_with_the_state_the_history_goes_on(lived: House, tmp_path: Path) -> None:
    home = restored(lived, tmp_path, state=True)
    home.turn(times=20)
    assert sorted(home.states()) == ["archived", "archived", "failed", "review"]
    assert set(kept(home)["outbox"]) == {"done.png", "new.png"}
    home.crash()
