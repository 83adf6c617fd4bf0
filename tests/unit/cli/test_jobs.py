"""The commands that read the job database, over jobs of a service whose worker is a function."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from backfire.cli import common
from backfire.cli.commands import app
from backfire.config import Verify
from backfire.errors import StoreError
from backfire.evaluate.judge import EditResult
from backfire.service.worker import local
from backfire.service.worker.protocol import Finished, Order
from backfire.types import MaskKind, Verdict
from benchmarks import passthrough
from tests.support.house import House, house
from tests.support.pictures import encoded, photo

__all__ = ["house"]

REASONS = (
    "region 0: partial edit by latent-mini keeps SSIM 0.869 of the clean edit, at most 0.85 asked",
    "more",
)


def tell(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture
def weak(house: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> House:
    """The working folder is that of a configuration under which desk/me.png was published as weak."""

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        done = passthrough.process(order, progress)
        (order.folder / "sheet.jpg").write_bytes(b"sheet")
        return replace(done, verdict=Verdict.WEAK, reasons=REASONS)

    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1})
    monkeypatch.setattr(local, "process", process)
    monkeypatch.chdir(home.base)
    (home.base / "config.yaml").write_text(yaml.safe_dump({"folders": {"inbox": "inbox"}}))
    (home.base / "inbox" / "desk").mkdir()
    (home.base / "inbox" / "desk" / "me.png").write_bytes(encoded(photo()))
    home.turn(times=8)
    assert home.states() == ["archived"]
    return home


def test_a_weak_job_says_why_where_the_measurements_are_and_what_to_do(weak: House) -> None:
    why = f"{REASONS[0]} (and 1 more)"
    assert [job["message"] for job in json.loads(tell("jobs", "--json").stdout)] == [why]
    assert REASONS[0].split()[-6] in tell("jobs").stdout, "the table is too narrow for the whole of it here"
    lines = [line.strip() for line in tell("explain", "desk/me.png").stdout.splitlines()]
    assert lines[0].startswith("desk/me.png: is done, but its protection is weak; the result is ")
    reports = [str(weak.base / "reports" / "desk" / f"me.png{end}") for end in (".json", ".sheet.jpg")]
    assert lines[-4:-1] == [why, *reports]
    page, _, section = lines[-1].removeprefix("what to do: ").partition(", section ")
    assert f"\n## {section}\n" in (Path(__file__).parents[3] / page).read_text()
    (job,) = json.loads(tell("explain", "desk/me.png", "--json").stdout)["jobs"]
    assert (job["message"], job["reports"]) == (why, reports)


def test_jobs_are_listed_by_verdict(weak: House) -> None:
    assert len(json.loads(tell("jobs", "--verdict", "weak", "--json").stdout)) == 1
    assert json.loads(tell("jobs", "--verdict", "protected", "--json").stdout) == []
    assert len(json.loads(tell("jobs", "--state", "archived", "--json").stdout)) == 1
    refused = tell("jobs", "--state", "weak")
    assert refused.exit_code == 2
    assert "--verdict weak" in refused.output
    assert tell("jobs", "--state", "archve").exit_code == 2


def test_status_counts_verdicts_and_says_when_it_last_worked(weak: House) -> None:
    assert json.loads(tell("status", "--json").stdout)["verdicts"] == {"weak": 1}
    weak.crash()  # gives up the lock
    told = tell("status").stdout
    assert told.startswith("not running; last worked 20")
    assert "verdicts: 1 weak; backfire jobs --verdict weak says why" in told


def test_retry_of_a_published_picture_says_how_to_protect_it_anew(weak: House) -> None:
    told = tell("retry", "1")
    assert told.exit_code == 3
    original = weak.base / "archive" / "desk" / "me.png"
    command = f"backfire protect {original} -c config.yaml -o NEW.png"
    assert f"job 1 was published as weak; to protect it anew: {command}" in told.stdout
    assert original.exists()
    assert weak.files("inbox") == {}


def test_a_file_that_was_never_a_job_is_an_error_with_near_names(weak: House) -> None:
    for unknown in ("me.png", "desk/ma.png", "desk/me.jpg"):
        told = tell("explain", unknown)
        assert told.exit_code == 3
        assert "was never a job" in told.stdout
        assert "near names: desk/me.png" in told.stdout
    told = tell("explain", "desk/ma.png", "--json")
    assert (told.exit_code, json.loads(told.stdout)["near"]) == (3, ["desk/me.png"])
    (weak.base / "inbox" / "waits.png").write_bytes(b"")
    assert tell("explain", "waits.png").exit_code == 0
    assert "near names: waits.png" in tell("explain", "wait.png").stdout


def test_a_path_is_seen_from_the_working_folder_the_configuration_or_the_inbox(
    weak: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weak.base.parent)
    config = os.path.join(weak.base.name, "config.yaml")
    for seen in (
        "inbox/desk/me.png",
        f"{weak.base.name}/inbox/desk/me.png",
        "desk/me.png",
        "outbox/desk/me.png",
    ):
        told = tell("explain", seen, "-c", config)
        assert (told.exit_code, told.stdout.partition(":")[0]) == (0, "desk/me.png"), seen


def test_before_the_first_run_both_commands_name_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"folders": {"inbox": "inbox"}}))
    for command in (["status"], ["explain", "inbox/me.png"]):
        with pytest.raises(StoreError, match="what lies in the inbox waits for `backfire once`"):
            tell(*command)


def test_what_is_asked_stands_beside_what_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = [
        EditResult("latent-mini", 0, MaskKind.TRIGGER, 0.7, 0.1, held_out=False, control_ssim=0.97),
        EditResult("latent-mini", 0, MaskKind.PARTIAL, 0.869, 0.1, held_out=False),
        EditResult("latent-mini", 0, MaskKind.FAR, 0.91, 0.01, held_out=False),
    ]
    receipt = {"verdict": "weak", "file": "me.jpg", "reasons": [], "edits": [edit.row() for edit in edits]}
    monkeypatch.setattr(common.out, "width", 200)
    common.print_receipt(receipt, Verify())
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "latent-mini" in line]
    assert [[cell.strip() for cell in row[6:8]] for row in rows] == [
        ["SSIM <= 0.75, L1 >= 0.05, seen >= 50%", "met"],
        ["SSIM <= 0.85, L1 >= 0.03, seen >= 25%", "missed"],
        ["SSIM >= 0.92", "missed"],
    ]
