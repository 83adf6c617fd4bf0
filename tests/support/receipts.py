"""Checks receipts against their published JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "receipt.schema.json"


def require_documented(receipt: dict[str, Any]) -> None:
    """Fail unless the receipt matches the documented schema, which allows no further fields."""
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(receipt)]
    assert not errors, "\n".join(["docs/reference/receipt.schema.json:", *errors])
