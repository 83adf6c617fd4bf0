"""The text of the configuration file for the page of settings, without what is secret in it.

It is parsed here and not in `config`, which loads what would double the memory of the page's process.
"""

from __future__ import annotations

import re

import yaml

from backfire.web.options import Options

NULL = "tag:yaml.org,2002:null"


def without_secrets(options: Options) -> str | None:
    """The configuration file's text; None where it cannot be read, or its secrets cannot be found."""
    try:
        text = options.config.read_text(encoding="utf-8")
        webhooks = _webhooks(text)
        for begins, ends in sorted(webhooks, reverse=True):
            ends = begins + len(text[begins:ends].rstrip())  # a folded one reaches to the next line
            text = f"{text[:begins]}•••{text[ends:]}"
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return None
    for secret in (value for value in webhooks.values() if "://" in value):  # it may stand in a comment, too
        text = text.replace(secret, "•••")
    # One that stands in a comment.
    return re.sub(r"(?m)^(.*\bwebhook\s*:\s*)(?!null\b|•••)\S.*$", r"\1•••", text)


def _webhooks(text: str) -> dict[tuple[int, int], str]:
    """The values of `webhook` by where they begin and end in YAML, in whichever style they are written.

    Raises:
        yaml.YAMLError: it is none.
    """
    found, seen = dict[tuple[int, int], str](), set[int]()
    nodes = [yaml.compose(text, yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            nodes += [key, value]
            if key.value == "webhook" and not (isinstance(value, yaml.ScalarNode) and value.tag == NULL):
                place = value.start_mark.index, value.end_mark.index
                found[place] = value.value if isinstance(value, yaml.ScalarNode) else ""
    return found
