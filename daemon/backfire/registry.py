"""What the configuration chooses by name: detectors, kinds of editors, methods; one line for each.

To add one: a new file with the class, and one line in the registry of its package. Nothing is imported
before it is used, so a registry can be read where the class's libraries are not wanted, or not installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from backfire.errors import require


@dataclass(frozen=True)
class Entry:
    """One line of a registry; subclasses add what is to be known of it without importing it.

    Attributes:
        target: where the class is, `package.module:Class`, as in entry points of Python packages.
    """

    target: str

    def resolve(self) -> Any:
        """Import the class.

        Raises:
            ImportError: its module, or a library that this needs, is not there.
        """
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


AnyEntry = TypeVar("AnyEntry", bound=Entry)


class Registry(Mapping[str, AnyEntry], Generic[AnyEntry]):
    """Entries by the name that they have in the configuration.

    Args:
        what: what is registered, for messages.
        entries: in the order in which people read them.
    """

    def __init__(self, what: str, entries: Mapping[str, AnyEntry]) -> None:
        self._what, self._entries = what, dict(entries)

    def __getitem__(self, name: str) -> AnyEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def require(self, name: str, setting: str | None = None) -> AnyEntry:
        """The entry of that name.

        Args:
            setting: the setting that holds the name, for the message.

        Raises:
            ConfigError: there is none; the message names the nearest one.
        """
        require(name, self._entries, setting or self._what)
        return self._entries[name]
