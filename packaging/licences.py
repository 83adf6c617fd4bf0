"""Print which licence each component of a CycloneDX list is under, as a table: a part of `make sbom`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ELSEWHERE = {"protobuf": "BSD-3-Clause", "transformers": "Apache-2.0"}
"""Licences of packages whose metadata name none that the list takes over; their licence files say them."""


def main() -> None:
    """Print the table for the file that is named; exit with 1 where a licence is not known."""
    components = json.loads(Path(sys.argv[1]).read_text())["components"]
    print("| component | version | licence |\n|---|---|---|")
    unknown = []
    for component in sorted(components, key=lambda one: one["name"].lower()):
        names = licences(component)
        if not names and (said := ELSEWHERE.get(component["name"])):
            names = [said]
        if not names:
            unknown.append(component["name"])
        print(f"| {component['name']} | {component.get('version', '')} | {' and '.join(names) or '?'} |")
    if unknown:
        sys.exit(
            f"{sys.argv[1]}: no licence is given for {', '.join(unknown)}, expected one for each; "
            "look into the package and add it to ELSEWHERE in packaging/licences.py"
        )


def licences(component: dict[str, Any]) -> list[str]:
    """What a component says of its licence, each once; texts of licences by their first line."""
    found = []
    for given in component.get("licenses", []):
        licence = given.get("license", {})
        name = given.get("expression") or licence.get("id") or licence.get("name", "")
        name = re.sub("^License :: (OSI Approved :: )?", "", name).strip()
        if not name or re.match(r"declared licen[sc]e of", name):
            name = licence.get("text", {}).get("content", "").strip().partition("\n")[0]
        if name and name not in found:
            found.append(name.partition("\n")[0][:80])
    return found


if __name__ == "__main__":
    main()
