"""The section `hooks`: who is told about a picture that was published or has failed."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from backfire.config.section import Program, Section


class Hooks(Section):
    """Who is told, in JSON and at least once, when a picture is published, held for review, or has failed."""

    events: tuple[Literal["published", "review", "failed", "digest"], ...] = ("published", "review", "failed")
    """The events that are told; digest is one message for all that was dropped into a folder together."""
    digest_s: Annotated[float, Field(ge=1, le=3600)] = 60
    """The seconds after which, if nothing more has ended in a folder, its digest is sent."""
    webhook: SecretStr | None = None
    """The address that gets a POST, such as https://user:password@host/path."""
    command: Program = ()
    """The program that gets the JSON on its standard input, with arguments: [/usr/local/bin/tell, --desk]."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10
    """The seconds that one try may take."""
    attempts: Annotated[int, Field(ge=1, le=1000)] = 12
    """The tries, 5 s to 1 h apart, before an event is given up; twelve take some two and a half hours."""

    @field_validator("webhook", mode="before")
    @classmethod
    def _url(cls, value: Any) -> Any:
        """Refuses what is no address without repeating it: it may hold a password."""
        if value is None:
            return None
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        try:
            parts = urlsplit(text) if isinstance(text, str) else None
            sound = parts is not None and parts.scheme in ("http", "https") and parts.hostname is not None
            _ = parts and parts.port
        except ValueError:
            sound = False
        if not sound or not re.fullmatch(r"[!-~]+", text):
            raise ValueError("hooks.webhook: is no address such as 'https://host/path', in plain ASCII")
        return value
