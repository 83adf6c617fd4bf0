"""What the documents point to is there: files, headings, settings; and their examples are taken."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from backfire import config
from backfire.config import Regions, Settings, renamed

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "training/*.md")
    for path in ROOT.glob(pattern)
)


@cache
def prose(path: Path) -> str:
    """A document without its fenced code, whose `[a](b)` is no link and whose `#` no heading."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings: lower case, without punctuation, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    dead = []
    for link in links:
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        document = ahead.pop()
        reached.add(document)
        targets = re.findall(r"\]\((?!\w+:)([^)#\s]+\.md)", prose(document))
        found = {(document.parent / target).resolve() for target in targets}
        ahead += [path for path in found - reached if path not in ahead]
    assert set(DOCUMENTS) - reached <= {ROOT / "CHANGELOG.md"}


def test_every_setting_that_is_named_exists() -> None:
    """`section.key` in backticks, where the section is one of the configuration or of `regions`."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    sections |= {name: field.annotation for name, field in Regions.model_fields.items()}
    wrong = []
    for document in DOCUMENTS:
        for section, key in re.findall(r"`(?:regions\.)?([a-z_]+)\.([a-z_0-9]+)\b", prose(document)):
            if document.name == "CHANGELOG.md" and f"{section}.{key}" in renamed.SETTINGS:
                continue  # it says what the setting is called now
            fields = getattr(sections.get(section), "model_fields", None)
            if fields is not None and key not in fields:
                wrong.append(f"{document.name}: {section}.{key}")
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_of_settings_are_taken(document: Path) -> None:
    for example in re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
        settings = {"folders": {"inbox": "inbox"}, **yaml.safe_load(example)}
        config.parse(settings, base=ROOT, source=document.name)
