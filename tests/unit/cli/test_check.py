"""How `backfire check` prints its lines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer

from backfire.admin.probes import Check
from backfire.cli.check import report


def test_each_line_is_printed_when_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """The estimate of the time takes minutes on a busy machine, and until then nothing was to be seen."""

    def findings() -> Iterator[Check]:
        yield Check("config", "valid")
        assert "config: valid" in capsys.readouterr().out
        yield Check("folder inbox", "is missing", "make it")
        assert "make it" in capsys.readouterr().out

    with pytest.raises(typer.Exit):
        report(findings(), as_json=False)
