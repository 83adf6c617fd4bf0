"""Bugs of the daemon itself, for tests of what one of them costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from backfire.types import Job


@contextmanager
def bug(place: object, name: str, when: Callable[..., bool] = lambda *_: True) -> Iterator[None]:
    """Have a function of a class or module raise an error that nothing foresees.

    It is an error of the test if that never happens.

    Args:
        place, name: the class or module, and the function.
        when: tells by the function's positional arguments whether it raises.
    """
    real, raised = getattr(place, name), 0

    def buggy(*given: Any, **more: Any) -> Any:
        nonlocal raised
        if when(*given):
            raised += 1
            raise ZeroDivisionError("a bug")
        return real(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, buggy)
        yield
    assert raised, f"nothing has met the bug in {name}"


def about(name: str) -> Callable[..., bool]:
    """Whether one of the arguments is the job of that path."""
    return lambda *given: any(isinstance(one, Job) and one.name == name for one in given)
