"""What the first release left behind is taken over."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
import yaml

from backfire import config, inpaint
from backfire.config.renamed import SETTINGS
from backfire.errors import ConfigError
from backfire.service.store.reader import Reader
from backfire.service.store.store import Store
from backfire.types import ACTIVE, JobState

S = JobState
FIRST = Path(__file__).parents[2] / "support" / "first_release"
LATER = {S.SETTING_ASIDE, S.HOLDING, S.RELEASING, S.REVIEW}
"""States that the first release did not have."""


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The first release's database, from what its own code wrote."""
    path = tmp_path / "jobs.db"
    connection = sqlite3.connect(path)
    connection.executescript((FIRST / "jobs.sql").read_text())
    connection.close()
    return path


def test_jobs_of_the_first_release_in_every_state_are_taken_over(left: Path) -> None:
    with Store(left) as store:
        jobs = {job.state: job for job in store.jobs()}
        assert set(jobs) == set(S) - LATER
        assert all(job.path == f"desk/{state}.png".encode() for state, job in jobs.items())
        assert {state: len(store.history(job.id)) for state, job in jobs.items()} == {
            S.SETTLING: 1, S.WAITING_MASK: 2, S.READY: 2, S.RUNNING: 4, S.PUBLISHING: 5, S.PUBLISHED: 5,
            S.ARCHIVED: 5, S.FAILED: 5, S.QUARANTINED: 5, S.SKIPPED: 3,
        }  # fmt: skip
        assert jobs[S.FAILED].message == "as it was said then"
        assert store.latest_result(str(jobs[S.ARCHIVED].key)) == jobs[S.ARCHIVED]
        # Work goes on where it was: what ran is given back, what was ready is claimed.
        assert store.give_back(jobs[S.RUNNING].id, at=2e9).state is S.READY
        assert store.start_attempt(jobs[S.READY].id, at=2e9).attempts == 1
        again = store.add([job.path for job in jobs.values()], at=2e9)
        assert {job.path for job in again} == {job.path for state, job in jobs.items() if state not in ACTIVE}
    with Reader(left) as reader:
        assert {job.state for job in reader.jobs()} >= set(ACTIVE) - LATER


def test_a_configuration_of_the_first_release_is_told_each_new_name(tmp_path: Path) -> None:
    """An operator follows the messages until the configuration is taken."""
    path = tmp_path / "config.yaml"
    path.write_text((FIRST / "config.yaml").read_text())
    with pytest.raises(ConfigError) as refused:
        config.load(path)
    told = re.findall(r"'(\w+\.\w+)' is now called '(\w+\.\w+)'; write that", str(refused.value))
    assert len(told) == len(str(refused.value).splitlines()) == 2
    assert all(SETTINGS[old] == new for old, new in told)
    text = path.read_text()
    for old, new in told:
        text = text.replace(old.rpartition(".")[2] + ":", new.rpartition(".")[2] + ":")
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        inpaint.require_known(config.load(path))
    assert str(refused.value) == (
        "protect.surrogates: got 'latent-mini', whose place 'flux2-mini' took; write that"
    )
    path.write_text(text.replace("latent-mini", "flux2-mini"))
    settings = config.load(path)
    inpaint.require_known(settings)
    values = yaml.safe_load(path.read_text())
    assert settings.verify.incomplete_l1_min == values["verify"]["incomplete_l1_min"]
