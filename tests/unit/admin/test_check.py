"""What `backfire check` says of folders."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from backfire.admin import check
from backfire.admin.probes import Check
from backfire.admin.space import Space
from backfire.config import Settings, parse
from backfire.evaluate.judge import THRESHOLDS
from backfire.files import inbox


@pytest.mark.parametrize("missing", [True, False])
def test_an_inbox_whose_parent_is_missing_is_reported(tmp_path: Path, missing: bool) -> None:
    inbox = tmp_path / "mnt share" / "inbox"
    if not missing:
        inbox.parent.mkdir()
    settings = parse({"folders": {"inbox": str(inbox)}, "regions": {"detectors": ["sidecar"]}}, base=tmp_path)
    found = next(line for line in check.check(settings) if line.subject == "folder inbox")
    assert found.ok is not missing
    if missing:
        assert found.found == f"{inbox}: its parent {inbox.parent} does not exist"
        assert found.remedy.endswith(f"make it: mkdir -p '{inbox}'")
    assert not inbox.exists()


def test_little_space_for_an_inbox_alone_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    disks = [Space(["inbox"], 1 << 20), Space(["outbox", "state"], 1 << 20)]
    monkeypatch.setattr(check, "space", lambda _: disks)
    alone, others = check._spaces(settings)
    assert (alone.ok, others.ok) == (True, False)


def dropped(folder: Path, mode: int) -> None:
    """A folder of that mode with a picture."""
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    folder.chmod(mode)


def test_subfolders_of_which_files_cannot_be_removed_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    for name, mode in {"open": 0o2775, "the desk": 0o2755}.items():
        dropped(settings.folders.inbox / name, mode)
    (settings.folders.inbox / "empty").mkdir(mode=0o2755)
    # As the owner of none of them sees it, who is in their group; root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, _: bool(os.stat(path).st_mode & 0o020))
    (found,) = check._subfolders(settings)
    assert (found.subject, found.found) == (
        "inbox/the desk",
        f"uid {os.geteuid()} cannot remove files (mode 2755)",
    )
    assert found.remedy == (
        f"chmod g+w '{settings.folders.inbox}/the desk', where its group is the daemon's; "
        f"and for folders to come: setfacl -R -d -m g::rwx {settings.folders.inbox}"
    )


def test_a_sticky_subfolder_of_others_is_reported_and_one_that_vanished_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parse({"folders": {"inbox": "inbox"}}, base=tmp_path)
    for name, mode in {"gone": 0o2775, "open": 0o2775, "sticky": 0o3777}.items():
        dropped(settings.folders.inbox / name, mode)
    found = inbox.scan(settings.folders.inbox, settings.watch.ignore)
    monkeypatch.setattr(inbox, "scan", lambda *_: found)
    shutil.rmtree(settings.folders.inbox / "gone")
    monkeypatch.setattr(os, "access", lambda path, _: os.path.exists(path))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    (line,) = check._subfolders(settings)
    assert (line.subject, line.found) == (
        "inbox/sticky",
        f"uid {owner + 1} cannot remove files (mode 3777)",
    )
    assert line.remedy.startswith(f"chmod g+w,-t {settings.folders.inbox}/sticky, ")
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert [*check._subfolders(settings)] == [], "its owner may remove any file"


def test_a_detector_whose_program_cannot_be_run_is_reported(tmp_path: Path) -> None:
    (tmp_path / "find").symlink_to("/bin/true")
    for program, ok in (("./find", True), ("true", True), ("bin/find", False), ("no-such-program", False)):
        regions = {"detectors": ["command"], "command": {"argv": [program]}}
        settings = parse({"folders": {"inbox": "inbox"}, "regions": regions}, base=tmp_path)
        found = check._loads("detector command", partial(check._detector, "command", settings.regions))
        assert found.ok == ok, program
        assert ok or "cannot be run; name a program" in found.remedy


def test_thresholds_that_every_picture_meets_are_reported_with_their_rule(tmp_path: Path) -> None:
    def settings(**sections: object) -> Settings:
        return parse({"folders": {"inbox": "inbox"}, **sections}, base=tmp_path)

    def lines(**sections: object) -> dict[str, Check]:
        return {line.subject: line for line in check.thresholds(settings(**sections))}

    lenient = settings(verify={"far_ssim_min": 0})
    told = next(line for line in check.check(lenient) if line.subject == "thresholds")
    assert not told.ok
    assert [(subject, line.ok) for subject, line in lines().items()] == [("thresholds", True)]
    idle = {name: 1.0 if name.endswith("_max") or name == "control_factor" else 0.0 for name in THRESHOLDS}
    for name, value in idle.items():
        (line,) = lines(verify={name: value}).values()
        assert not line.ok
        assert line.found == f"verify: {name} {value:g}: which every picture meets"
        assert "could be called protected" in line.remedy
    ruled = lines(rules=[{"match": "a/**", "trigger_l1_min": 0}])
    assert {subject: line.ok for subject, line in ruled.items()} == {
        "thresholds": True,
        "rules.0 (a/**): thresholds": False,
    }
