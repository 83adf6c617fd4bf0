"""The free space that commands and the page tell of."""

from __future__ import annotations

import shutil
from pathlib import Path

from backfire.admin.space import Space, space


def test_a_folder_that_is_not_made_yet_is_on_the_disk_where_it_will_be(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (found,) = space({"inbox": tmp_path / "inbox", "outbox": tmp_path / "new" / "outbox"})
    assert found == Space(["inbox", "outbox"], found.free, shutil.disk_usage(tmp_path).total)
    assert found.free
