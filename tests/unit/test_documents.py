"""Links of the documents exist, their examples work, and generated parts are current."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import time
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import backfire
from backfire import config
from backfire.cli.commands import app
from backfire.config import Regions, Settings
from backfire.errors import Code
from backfire.service.jobs import Jobs
from backfire.service.metrics import Metrics
from backfire.service.store.store import Store
from docs import generate

ROOT = Path(__file__).parents[2]
SITE = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")), *SITE, ROOT / "benchmarks/README.md", ROOT / "training/README.md",
]  # fmt: skip
HISTORY = {ROOT / "CHANGELOG.md"}
"""Documents that may name former commands and settings."""

OLD_WORDS = [
    r"withstand", r"\brecipes?\b", r"\btwins?\b", r"\bledger\b", r"\bpremises\b", r"\bput off\b",
    r"\bsigns? of life\b", r"\bsights?\b", r"\bcuts\b", r"\bcut otherwise\b", r"\bthe books\b",
    r"\babreast\b", r"\bdescent\b", r"\brooms?\b",
]  # fmt: skip
"""Former words of this project for robust, baseline, duplicate, heartbeat and attack path."""

ELSEWHERE = [r"\brooms?\b"]
"""Those of `OLD_WORDS` that code needs in their usual sense."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose(path: Path) -> str:
    """A document without its fenced code, whose `[a](b)` is no link and whose `#` no heading."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What a browser calls the headings: lower case, without punctuation, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    """Relative links and pictures."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)) if not re.match(r"\w+:", link)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(document: Path) -> None:
    dead = []
    for link in links(document):
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
        found = {(document.parent / link.partition("#")[0]).resolve() for link in links(document)}
        ahead += [path for path in found - reached if path.suffix == ".md" and path not in ahead]
    # The first page of the site takes the place of the README.
    assert set(DOCUMENTS) - reached <= {ROOT / "docs/index.md"}


def test_every_page_is_in_the_sites_navigation() -> None:
    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            yield from (page for part in entry.values() for page in pages(part))
        elif isinstance(entry, list):
            yield from (page for part in entry for page in pages(part))

    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == [str(page.relative_to(ROOT / "docs")) for page in SITE]


def test_every_setting_that_is_named_exists() -> None:
    """`section.key` in backticks, where the section is one of the configuration or of `regions`."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    sections |= {name: field.annotation for name, field in Regions.model_fields.items()}
    wrong, looked_at = [], 0
    for document in set(DOCUMENTS) - HISTORY:
        for section, key in re.findall(r"`(?:regions\.)?([a-z_]+)\.([a-z_0-9]+)\b", prose(document)):
            fields = getattr(sections.get(section), "model_fields", None)
            looked_at += fields is not None
            if fields is not None and key not in fields:
                wrong.append(f"{document.name}: {section}.{key}")
    assert not wrong
    assert looked_at > 100


def examples(document: Path) -> list[str]:
    """Its examples of settings."""
    return re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_examples_of_settings_are_taken(document: Path) -> None:
    for example in examples(document):
        settings = {"folders": {"inbox": "inbox"}, **yaml.safe_load(example)}
        config.parse(settings, base=ROOT, source=document.name)


@cache
def commands() -> dict[str, set[str]]:
    """Every command with its options, and each group with those of its own."""

    def walk(group: Any, path: str) -> Iterator[tuple[str, set[str]]]:
        yield path, {name for p in group.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
        for name, command in getattr(group, "commands", {}).items():
            yield from walk(command, f"{path} {name}".strip())

    return dict(walk(typer.main.get_command(app), ""))


AS_ANOTHER = re.compile(r"^\s*(sudo (-H?u \w+ )?(\w+=\S+ )*|docker compose exec \w+ )")
"""Words that may come before the program."""


def told(document: Path) -> Iterator[list[str]]:
    """The words of each `backfire …` in a shell example or in backticks, after the program's name."""
    text = document.read_text()
    lines = [
        line.removeprefix("$ ")
        for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [f"backfire {words}" for words in re.findall(r"`backfire ([^`]+)`", prose(document))]
    for line in lines:
        for part in re.split(r"\|| && ", line):
            words = shlex.split(AS_ANOTHER.sub("", part), comments=True)
            if words and Path(words[0]).name in ("backfire", "bf"):  # `bf` is a function of docs/install.md
                yield words[1:]


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS) - HISTORY), ids=name_of)
def test_commands_in_documents_exist_with_their_options(document: Path) -> None:
    wrong = []
    for words in told(document):
        path = max((p for p in commands() if words[: len(p.split())] == p.split()), key=len)
        rest = words[len(path.split()) :]
        options = {word for word in rest if re.fullmatch(r"--?[a-z][\w-]*", word)}
        if (not path and rest and not options) or options - commands()[path] - commands()[""]:
            wrong.append(" ".join(words))
    assert not wrong


def test_documents_have_what_is_looked_for_in_each() -> None:
    """Many have none of it, so that their checks would pass if nothing were found any more."""
    assert sum(len(links(document)) for document in DOCUMENTS) >= 200
    assert sum(len(examples(document)) for document in DOCUMENTS) >= 20
    assert sum(len([*told(document)]) for document in set(DOCUMENTS) - HISTORY) >= 100


def test_examples_in_python_call_existing_functions() -> None:
    called = set()
    for document in set(DOCUMENTS) - HISTORY:
        for example in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
            for node in ast.walk(ast.parse(example)):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="backfire"), attr=name)):
                        given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                        inspect.signature(getattr(backfire, name)).bind(*node.args, **given)
                        called.add(name)
    assert called == {"protect", "verify", "detect"}


def test_the_readme_is_short_and_begins_with_a_command() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 160
    assert any(line.startswith("make demo") for line in lines[:25])


@pytest.mark.parametrize("document", sorted(set(DOCUMENTS) - HISTORY), ids=name_of)
def test_documents_use_the_words_of_the_field(document: Path) -> None:
    found = [word for word in OLD_WORDS if re.search(word, document.read_text(), re.IGNORECASE)]
    assert not found


@pytest.mark.parametrize("code", list(Code))
def test_every_error_code_is_explained(code: Code) -> None:
    entries = (ROOT / "docs/troubleshooting/codes.md").read_text().split("\n### ")
    entry = next((text for text in entries if text.startswith(f"`{code.value}`\n")), "")
    assert len(entry) > 80, f"docs/troubleshooting/codes.md needs an entry for {code.value}"
    assert f"codes.md#{code.value}" in (ROOT / "docs/reference/errors.md").read_text()


def test_the_documents_list_all_metrics(tmp_path: Path) -> None:
    with Store(tmp_path / "jobs.sqlite") as store:
        jobs = Jobs(store, tmp_path / "spool", time.time)
        metrics = Metrics(jobs, {"outbox": tmp_path}, lambda: {"loop": 0}, lambda: {"sent": 0})
        there = set(re.findall(r"^# TYPE (backfire_\w+) (\w+)$", metrics.text().decode(), re.MULTILINE))
    page = (ROOT / "docs/reference/metrics.md").read_text()
    listed = set(re.findall(r"^\| `(backfire_\w+)` \| (\w+) \|", page, re.MULTILINE))
    assert listed == {(name, kind) for name, kind in there if not name.endswith("_created")}


def test_the_documents_list_all_log_events() -> None:
    package = Path(backfire.__file__).parent
    sources = "\n".join(path.read_text() for path in package.rglob("*.py"))
    there = re.findall(r"log\.(?:debug|info|warning|error)\(\s*\"([^\"]+)\"", sources)
    page = (ROOT / "docs/troubleshooting/index.md").read_text().partition("events in the log")[2]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(set(there))
    assert len(set(there)) > 20, "the pattern finds them"


def test_generated_documents_are_current() -> None:
    stale = [name_of(path) for path, text in generate.generated().items() if path.read_bytes() != text]
    assert stale == [], "run: python -m docs.generate"


def test_the_schema_of_the_receipt_is_valid() -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads((ROOT / "docs/reference/receipt.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert set(schema["required"]) <= set(schema["properties"])


def test_docstrings_comments_and_messages_use_the_words_of_the_field() -> None:
    words = re.compile("|".join(word for word in OLD_WORDS if word not in ELSEWHERE), re.IGNORECASE)
    found, looked_at = [], 0
    for path in Path(backfire.__file__).parent.rglob("*.py"):
        if path.name == "renamed.py":  # holds the old names of settings
            continue
        with path.open("rb") as file:
            tokens = list(tokenize.tokenize(file.readline))
        told = [token.string for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING)]
        text = " ".join(" ".join(told).split()).replace("graph cuts", "")  # an algorithm's name
        found += [f"{path.name}: {word}" for word in words.findall(text)]
        looked_at += len(told)
    assert not found
    assert looked_at > 5000
