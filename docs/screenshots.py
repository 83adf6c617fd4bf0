"""Takes the pictures of the status page in the documentation: python -m docs.screenshots RUN OUT.

RUN is a folder with the configuration, the job database and the folders of a run, such as one of
`python -m tests.support.mixed_drop`; OUT is where the pictures go, `docs/images` for those of the guide. It
needs Chromium, which `CHROMIUM` may name, and Playwright. With `--texts`, every page is taken whole, and what
it says is written beside the picture.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from backfire import config
from backfire.cli.page import options_of
from backfire.config import Settings
from backfire.service.store.listing import Listing
from backfire.types import Job, JobState, Verdict
from backfire.web.guard import token

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUALITY = 82


@dataclass(frozen=True)
class View:
    """One picture: its name, the address, how large the window is, and whether it is dark."""

    name: str
    path: str
    width: int = 1280
    height: int = 900
    dark: bool = False
    whole: bool = False


def views(shown: Job) -> list[View]:
    """The pictures of the guide; `shown` is the one whose own page is taken."""
    return [
        View("page-desktop", "/", height=1400),
        View("page-dark", f"/picture/{shown.id}", height=2790, dark=True),
        View("page-phone", "/", width=390, height=844),
    ]


def pages(jobs: dict[str, Job]) -> list[View]:
    """Every page whole, for readers."""
    own = [View(f"picture-{name}", f"/picture/{job.id}", whole=True) for name, job in jobs.items()]
    lists = [View(name, path, whole=True) for name, path in (("first", "/"), ("today", "/today"))]
    return [*lists, View("all", "/pictures?show=all", whole=True), *own]


def chosen(listing: Listing) -> dict[str, Job]:
    """One picture of each kind that there is."""
    found: dict[str, Job] = {}
    for job in [*listing.jobs("needs", most=200), *listing.jobs("done", most=200)]:
        weak = job.verdict == Verdict.WEAK and job.state == JobState.ARCHIVED
        kind = "weak" if weak else job.verdict.value if job.state == JobState.ARCHIVED and job.verdict else ""
        found.setdefault(kind or job.code or job.state.value, job)
    return found


@contextmanager
def serving(run: Path, settings: Settings) -> Iterator[str]:
    """The page over the folders of a run; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = options_of(settings, run / "config.yaml", ("127.0.0.1", port)).to_json()
    process = subprocess.Popen([sys.executable, "-m", "backfire.web", options])
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def take(browser: Browser, address: str, secret: str, view: View, out: Path, *, texts: bool) -> None:
    """Take one picture, and write down what the page says."""
    context = browser.new_context(
        viewport={"width": view.width, "height": view.height},
        color_scheme="dark" if view.dark else "light",
        device_scale_factor=2 if view.width < 500 else 1,
        locale="en-GB",
    )
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(f"{address}/unlock#{secret}")
    page.wait_for_url(f"{address}/")
    page.goto(address + view.path)
    page.evaluate("for (const one of document.querySelectorAll('img')) one.loading = 'eager'")
    loaded = "[...document.images].every((one) => one.complete)"
    for _ in range(1200):
        if page.evaluate(loaded):
            break
        page.wait_for_timeout(100)
    page.wait_for_timeout(500)  # pictures within drawings say not when they are there
    page.screenshot(path=out / f"{view.name}.jpg", full_page=view.whole, type="jpeg", quality=QUALITY)
    if texts:
        address_of = f"{view.path} at {view.width} px"
        (out / f"{view.name}.txt").write_text(f"{address_of}\n\n{page.evaluate('document.body.innerText')}\n")
    context.close()


def main(arguments: list[str]) -> int:
    """Take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m docs.screenshots", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder with the config.yaml of a run")
    parser.add_argument("out", type=Path, help="the folder for the pictures")
    parser.add_argument("--texts", action="store_true", help="take every page whole, and its text")
    parser.add_argument("--job", type=int, help="the job whose own page is taken; the first protected one")
    options = parser.parse_args(arguments)
    settings = config.load(options.run / "config.yaml")
    listing = Listing(settings.folders.database)
    kinds = chosen(listing)
    one = listing.get(options.job) if options.job else kinds.get("protected")
    if one is None:
        raise SystemExit(f"{options.run}: no protected picture; name one with --job")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [*views(one), *(pages(kinds) if options.texts else ())]
    with serving(options.run, settings) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for view in wanted:
            take(browser, address, token(settings.folders.state), view, options.out, texts=options.texts)
            print(options.out / f"{view.name}.jpg", flush=True)
        browser.close()
    listing.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
