"""The settings of each job: those of its path, and what a person decided about it.

Their digests are kept by rule, since computing one costs as much as copying a picture.
"""

from __future__ import annotations

from backfire.config import Settings
from backfire.types import Choice, Job


class JobSettings:
    """The settings of jobs under one configuration."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._digests: dict[tuple[int | None, bool], str] = {}

    def of(self, job: Job) -> Settings:
        """The settings with which a job is worked."""
        settings = self._settings.for_path(job.path)
        if job.choice != Choice.WHOLE:
            return settings
        regions = settings.regions.model_copy(update={"detectors": ("whole",)})
        return settings.model_copy(update={"regions": regions})

    def digest(self, job: Job) -> str:
        """Their `Settings.sha256`."""
        which = self._settings.rule_of(job.path), job.choice == Choice.WHOLE
        if which not in self._digests:
            self._digests[which] = self.of(job).sha256
        return self._digests[which]
