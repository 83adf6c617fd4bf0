"""The command `today`: the day on one screen."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from backfire import config
from backfire.admin.outcomes import Outcome
from backfire.admin.status import Status
from backfire.admin.today import Need, Reason
from backfire.admin.today import today as day
from backfire.cli.common import DEFAULT, AsJson, Config, app, colour, out, printable, wrapped
from backfire.service.store.reader import Reader
from backfire.types import duration

MEANING = {
    Outcome.PROTECTED: "published; edits of the region break",
    Outcome.WEAK: "published; an edit does not break enough, or others are disturbed",
    Outcome.UNPROTECTED: "published unchanged: a person or the settings said so",
    Outcome.FAILED: "not published; the original is in {failed}/",
    Outcome.HELD: "not published; a person is to decide; they lie in {review}/",
    Outcome.SKIPPED: "not worked: they left the inbox, or are called like masks",
}
SETTINGS = (
    "To change a setting: in {config}, under the heading that is named, change the line or write it "
    "(protect: and below it strength: strong); then {reload}. It counts for all "
    "that is worked from then on: set it back afterwards if it is for some pictures only. strong shows more "
    "and takes longer; subtle shows less and protects less."
)
NAMES, REASONS = 2, 9
"""How many pictures are named for each reason, and how many reasons for each kind: as a screen has room."""
LONGEST = 60
"""The most characters of a picture's path."""


@app.command()
def today(config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Show the day on one screen: what came in and what became of it, and what needs a person."""
    settings = config.load(config_file)
    with Reader(settings.folders.database) as store:
        found = day(settings, store)
    stands = found.status
    if as_json:
        document = {
            "since": found.since,
            "running": stands.alive,
            "came_in": stands.came_in,
            "outcomes": stands.today,
            "working": stands.working,
            "waiting": stands.waiting,
            "eta_s": stands.eta_s,
            "seconds_a_picture": stands.seconds_each,
            "free_bytes": [{"folders": disk.folders, "free": disk.free} for disk in found.space],
            "needs": [asdict(need) for need in found.needs],
            "left_over": [asdict(reason) for reason in found.left_over],
            "left_over_in_all": found.left_over_in_all,
            "earlier_failures": found.earlier,
            "earlier_weak": found.earlier_weak,
        }
        print(json.dumps(document, indent=2))
        return
    out.print(
        f"{time.strftime('%A %d %B %Y, %H:%M')}; the daemon {'runs' if stands.alive else 'does not run'}"
    )
    out.print(f"{stands.came_in:6d}  pictures came in")
    names = {name: folder.name for name, folder in settings.folders.named().items()}
    for one, count in stands.today.items():
        meaning = MEANING[one].format(**names)
        out.print(Text.assemble(f"{count:6d}  ", (f"{one:<12}", colour(one)), f" {meaning}"), soft_wrap=True)
    if stands.working:
        out.print(f"{stands.working:6d}  working")
    out.print(f"{stands.waiting:6d}  waiting      {waiting(stands)}".rstrip(), soft_wrap=True)
    free = ", ".join("unknown" if disk.free is None else f"{disk.free / 1e9:.1f} GB" for disk in found.space)
    out.print(f"free space: {free}")
    if not found.needs:
        out.print("nothing needs a person")
    else:
        out.print("what needs a person:")
    for need in found.needs:
        _print(need)
    if found.advises_settings:
        config_name = printable(str(config_file.absolute()))
        for text in wrapped(SETTINGS.format(config=config_name, reload=_reload(stands)), 0):
            out.print(Text(text), soft_wrap=True)
    if found.earlier:
        command = "backfire jobs --state failed --state quarantined"
        out.print(f"and {_counted(found.earlier, 'failure')} from before today: {command}", soft_wrap=True)
    if found.earlier_weak:
        out.print(f"and {_counted(found.earlier_weak, 'weak picture')} from before today: backfire accept")
    if found.left_over:
        files, named = found.left_over_in_all, sum(len(reason.names) for reason in found.left_over)
        stay = "stays" if files == 1 else "stay"
        some = f"; {named} of them" if named < files else ""
        out.print(f"{_counted(files, 'file')} that no picture uses {stay} in the inbox{some}:")
        _print_reasons(found.left_over)


def _counted(count: int, thing: str) -> str:
    """A number of things, such as `1 file` or `2 files`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _reload(stands: Status) -> str:
    """How the daemon is told of a changed setting, as it runs now."""
    if not stands.alive:
        return "the daemon reads it when it is started"
    return (
        f"systemctl reload backfire where the daemon is a service of the system, else kill -HUP "
        f"{stands.daemon.get('pid')}"
    )


def _print(need: Need) -> None:
    what = f"{need.count} {need.what}" if need.count else f"the {need.what}"
    what = what.removesuffix("s") if need.count == 1 else what  # one folder
    first, *rest = wrapped(f"{what}: {printable(need.do)}", 2)
    line = Text.assemble("- ", (what, colour(need.what)), first[len(what) :])
    out.print(line, soft_wrap=True)
    for text in rest:
        out.print(Text(f"  {text}"), soft_wrap=True)
    _print_reasons(need.reasons)


def _print_reasons(reasons: Sequence[Reason]) -> None:
    shown = len(reasons) if len(reasons) == REASONS + 1 else REASONS
    for reason in reasons[:shown]:
        for number, text in enumerate(wrapped(_in_line(reason), 8)):
            count = f"{len(reason.names):6d}" if reason.names and not number else ""
            out.print(Text(f"{count:<6}  {text}"), soft_wrap=True)
    if left := reasons[shown:]:
        pictures = sum(len(reason.names) for reason in left)
        out.print(f"{pictures:6d}  for other reasons: backfire jobs --since today")


def _in_line(reason: Reason) -> str:
    """Why, and the first pictures by name, with the ids of their jobs where they have any."""
    ids = [f" is job {number}" for number in reason.ids[:NAMES]] or [""] * NAMES
    first = zip(reason.names[:NAMES], ids, strict=False)
    names = ", ".join(_brief(printable(name)) + number for name, number in first)
    more = f" and {len(reason.names) - NAMES} more" if len(reason.names) > NAMES else ""
    return printable(reason.why) + (f" ({names}{more})" if names else "")


def _brief(name: str) -> str:
    """A path that leaves room for others on the screen: of a long one beginning and end."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 3]}…{name[-LONGEST * 2 // 3 + 1 :]}"


def waiting(stands: Status) -> str:
    """How long the queue takes, in words."""
    if not stands.left:
        return ""
    if stands.seconds_each is None or stands.eta_s is None:
        return "no estimate before the first picture is done"
    until = "" if stands.alive else " once the daemon runs"
    pace = f"{stands.seconds_each:.1f} s a picture on this machine"
    return f"about {duration(stands.eta_s)}{until} ({pace})"
