"""The registry that detectors, kinds of editors and methods share."""

from __future__ import annotations

import sys

import pytest

from backfire import detectors, inpaint
from backfire.errors import ConfigError
from backfire.perturb import methods
from backfire.registry import Entry, Registry

FRUIT = Registry("fruit", {"decimal": Entry("decimal:Decimal"), "nowhere": Entry("no_such_module:Thing")})


def test_an_entry_is_imported_when_it_is_resolved() -> None:
    from decimal import Decimal

    assert FRUIT["decimal"].resolve() is Decimal
    assert "no_such_module" not in sys.modules
    with pytest.raises(ImportError, match="no_such_module"):
        FRUIT.require("nowhere").resolve()


def test_a_registry_is_a_mapping_in_its_own_order() -> None:
    assert list(FRUIT) == ["decimal", "nowhere"]
    assert len(FRUIT) == 2
    assert "decimal" in FRUIT
    assert "apple" not in FRUIT


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="fruit: got 'decimla'; did you mean 'decimal'"):
        FRUIT.require("decimla")
    with pytest.raises(ConfigError, match=r"shop\.fruit: got 'x'; valid names: decimal, nowhere"):
        FRUIT.require("x", "shop.fruit")


@pytest.mark.parametrize("registry", [detectors.DETECTORS, inpaint.KINDS, inpaint.BUILT_IN, methods.METHODS])
def test_every_entry_names_an_existing_class(registry: Registry[Entry]) -> None:
    assert len(registry) >= 2
    for entry in registry.values():
        if entry.target.split(":")[0] != "backfire.detectors.logos":  # needs OpenCV, an extra
            assert isinstance(entry.resolve(), type)
