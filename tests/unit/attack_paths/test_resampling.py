"""Resizing as a linear map of an axis equals that of the tools' libraries, and padding that of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from backfire.attack_paths.resampling import FILTERS, Axis, Beyond, Weights

SIZES = [(37, 12), (12, 37), (64, 16), (100, 99), (5, 1), (1, 7), (16, 16), (3, 40), (200, 64)]


def _row(length: int) -> NDArray[np.float32]:
    return np.random.default_rng(length).random(length, dtype=np.float32)


def _library(name: str, row: NDArray[np.float32], target: int) -> NDArray[Any]:
    """The row as the library itself resizes it, in float32."""
    library, method = name.split("-") if "-" in name else ("cv2", name)
    resized: NDArray[Any]
    if library == "pil":
        resized = np.asarray(Image.fromarray(row[None]).resize((target, 1), Image.Resampling[method.upper()]))
    elif library == "torch":
        mode = {"area": "area", "bilinear": "linear"}[method]
        resized = functional.interpolate(torch.from_numpy(row)[None, None], target, mode=mode)[0].numpy()
    else:
        cv2 = pytest.importorskip("cv2")
        resized = cv2.resize(row[None], (target, 1), interpolation=getattr(cv2, f"INTER_{method.upper()}"))
    only: NDArray[Any] = resized[0]
    return only


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_a_filter_equals_its_library(name: str, source: int, target: int) -> None:
    if name == "area" and target > source:
        pytest.skip("where OpenCV's area filter enlarges, it interpolates")
    row = _row(source)
    weights = FILTERS[name](source, target)
    assert weights.shape == (target, source)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights @ row, _library(name, row, target), atol=2e-5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def _apply(axis: Axis, row: NDArray[np.float32]) -> NDArray[np.float32]:
    part = row[axis.inside]
    index, matrix = axis.index(), axis.matrix()
    part = part if index is None else part[index]
    return part if matrix is None else matrix @ part


@pytest.mark.parametrize(("beyond", "mode"), [(Beyond.MIRROR, "symmetric"), (Beyond.EDGE, "edge")])
@pytest.mark.parametrize(("before", "after"), [(0, 5), (3, 0), (40, 90)])
def test_padding_equals_numpys(beyond: Beyond, mode: Any, before: int, after: int) -> None:
    row = _row(20)
    padded = np.pad(row[4:17], (before, after), mode=mode)
    axis = Axis(4, 17, 20, 13, before, after, beyond, "pil-lanczos")
    assert axis.matrix() is None
    np.testing.assert_array_equal(_apply(axis, row), padded)
    scaled = Axis(4, 17, 20, 7, before, after, beyond, "pil-bicubic")
    resized = _library("pil-bicubic", row[4:17], 7)
    np.testing.assert_allclose(_apply(scaled, row), np.pad(resized, (before, after), mode=mode), atol=1e-5)


def test_an_interval_that_exceeds_the_picture_is_padded_before_it_is_resized() -> None:
    row = _row(20)
    axis = Axis(-6, 31, 20, 9, 0, 0, Beyond.EDGE, "pil-bilinear")
    expected = _library("pil-bilinear", np.pad(row, (6, 11), mode="edge"), 9)
    np.testing.assert_allclose(_apply(axis, row), expected, atol=1e-5)


def test_extrapolated_padding_equals_pillows_resize_of_an_empty_interval() -> None:
    row = _row(30)
    axis = Axis(0, 30, 30, 20, 4, 5, Beyond.EXTRAPOLATED, "pil-lanczos")
    resized = Image.fromarray(row[None]).resize((20, 1), Image.Resampling.LANCZOS)
    low = np.asarray(resized.resize((4, 1), box=(0, 0, 0, 1)))[0]
    high = np.asarray(resized.resize((5, 1), box=(20, 0, 20, 1)))[0]
    expected = np.concatenate([low, np.asarray(resized)[0], high])
    np.testing.assert_allclose(_apply(axis, row), expected, atol=1e-5)


def test_an_axis_of_its_own_size_is_the_identity() -> None:
    axis = Axis(3, 9, 20, 6, 0, 0, Beyond.MIRROR, "pil-lanczos")
    assert axis.index() is None
    assert axis.matrix() is None
    assert axis.back(slice(4, 6)) is None


def test_back_returns_only_the_part_that_was_asked_for() -> None:
    axis = Axis(-2, 20, 18, 11, 0, 0, Beyond.EDGE, "pil-bicubic")
    row = _row(11)
    weights: Weights | None = axis.back(slice(5, 9))
    assert weights is not None
    np.testing.assert_allclose(weights @ row, _library("pil-bicubic", row, 22)[7:11], atol=1e-5)
