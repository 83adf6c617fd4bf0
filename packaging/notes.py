"""Print the changelog's section of a version, as the notes of its release: `make notes`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print the section of the version that is named, by default that of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = sys.argv[1].removeprefix("v") if len(sys.argv) > 1 else project["version"]
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    titles = [section.partition("\n")[0] for section in sections]
    for title, section in zip(titles, sections, strict=True):
        if title.split()[0] == version:
            print(section.partition("\n")[2].strip())
            return
    sys.exit(
        f"CHANGELOG.md: has sections {', '.join(titles)}, expected one for {version}; "
        "write what users can do now and what they must change below a heading '## VERSION (DATE)'"
    )


if __name__ == "__main__":
    main()
