"""Build sdist and wheel from the last commit, the same bytes each time: `make dist`.

Only what is committed is built, with the commit's time as every file's time, so that whoever builds the same
commit with the same setuptools (the wheel's `WHEEL` file names it) gets files with the same digests.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEFAULT_UMASK = 0o022
"""setuptools copies the rights of files into the wheel."""


def main() -> None:
    """Build into the folder that is named, by default `dist`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    parser.add_argument("--no-isolation", action="store_true", help="with the setuptools that is installed")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    project = tomllib.loads(_git("show", "HEAD:pyproject.toml").decode())["project"]
    version, link = project["version"], project["urls"]["Source"]
    tags = [tag for tag in _git("tag", "--points-at", "HEAD").decode().split() if tag.startswith("v")]
    if tags and f"v{version}" not in tags:
        sys.exit(
            f"version: pyproject.toml says {version}, the commit's tag says {', '.join(tags)}, expected the "
            "same; correct pyproject.toml and CITATION.cff, commit, and tag that commit"
        )
    if _git("status", "--porcelain", "--untracked-files=no"):
        print("changes that are not committed are not built", file=sys.stderr)
    os.umask(DEFAULT_UMASK)
    commit_time = int(_git("log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as temporary:
        tree, built = Path(temporary, "tree"), Path(temporary, "built")
        _export(tree)
        readme = tree / "README.md"
        readme.write_text(absolute(readme.read_text(), link, tags[0] if tags else "main"))
        options = ["--no-isolation"] if arguments.no_isolation else []
        subprocess.run(
            [sys.executable, "-m", "build", *options, "--outdir", built, tree],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(commit_time)},
        )
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(built.iterdir()):
            data = file.read_bytes()
            if file.name.endswith(".tar.gz"):
                data = repacked(data, commit_time)
            (folder / file.name).write_bytes(data)
            print(f"{hashlib.sha256(data).hexdigest()}  {folder / file.name}  {len(data) / 1e6:.1f} MB")


def absolute(readme: str, source: str, branch: str) -> str:
    """The README with links that work elsewhere: PyPI shows it without the files beside it."""
    readme = re.sub(
        r"(!\[[^\]]*\]\()(?!\w+:)([^)\s]+)",
        rf"\1{source.replace('//github.com', '//raw.githubusercontent.com')}/{branch}/\2",
        readme,
    )
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!\w+:|#)([^)\s]+)", rf"\1{source}/blob/{branch}/\2", readme)


def repacked(sdist: bytes, mtime: int) -> bytes:
    """An sdist in which nothing tells when, by whom and on which file system it was packed."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as source,
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=mtime, filename="") as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            member.mtime, member.pax_headers = mtime, {}
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


def _export(tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", "HEAD"))) as archive:
        archive.extractall(tree, filter="data")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()
