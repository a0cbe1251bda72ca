"""Boxes that cover scattered cells of a grid: how people read a list of chunks."""

from __future__ import annotations

from math import prod
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.errors import InvalidArgumentError

__all__ = ["merge_boxes"]

_MANY: Final = 100_000  # cells: from here on one order of the axes is tried, not each

_Boxes: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"


def merge_boxes(coordinates: NDArray[Any]) -> _Boxes:
    """Return few boxes that cover some cells of a grid, and nothing else.

    Cells are joined to runs along one axis, equal runs to rectangles along the next, and so on;
    the axis to begin with is the one that leads to the fewest boxes. That is not always the least
    number that there is.

    Parameters
    ----------
    coordinates : array of integers, shape (n, ndim)
        The cells, in any order; one that is given twice counts once.

    Returns
    -------
    starts, stops : arrays of int64, shape (m, ndim)
        First and last but one coordinates of the boxes, which are disjoint; in order of `starts`.
    """
    if coordinates.ndim != 2 or not np.issubdtype(coordinates.dtype, np.integer):
        raise InvalidArgumentError(
            f"cells are integers of shape (n, ndim), not {coordinates.dtype} of shape "
            f"{coordinates.shape}"
        )
    cells = coordinates.astype(np.int64)
    n, ndim = cells.shape
    if n == 0 or ndim == 0:
        none = np.zeros((min(n, 1), ndim), np.int64)
        return none, none.copy()
    low = cells.min(axis=0)
    sides = [int(side) for side in cells.max(axis=0) - low + 1]
    numbered = prod(sides) < 1 << 62
    begun = [
        _runs(cells, low, sides, axis) if numbered else _joined((cells, cells + 1), axis)
        for axis in range(ndim)
    ]
    if n > _MANY:
        begun = [min(begun, key=_count)]
    starts, stops = min((_all_joined(boxes) for boxes in begun), key=_count)
    order = np.lexsort(starts.T[::-1])
    return starts[order], stops[order]


def _count(boxes: _Boxes) -> int:
    return len(boxes[0])


def _runs(cells: NDArray[np.int64], low: NDArray[np.int64], sides: list[int], axis: int) -> _Boxes:
    """Join cells along one axis, by their numbers in a grid where that axis is the last."""
    axes = [*(other for other in range(len(sides)) if other != axis), axis]
    strides = dict(zip(axes, _strides([sides[one] for one in axes]), strict=True))
    numbers = np.zeros(len(cells), np.int64)
    for one, stride in strides.items():
        numbers += (cells[:, one] - low[one]) * stride
    numbers.sort()  # np.unique would hash them first, which costs ten times as much
    fresh = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=fresh[1:])
    numbers = numbers[fresh]
    fresh = np.ones(len(numbers), bool)
    fresh[1:] = (np.diff(numbers) != 1) | (numbers[1:] % sides[axis] == 0)
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(numbers)) - 1
    starts = np.empty((len(first), len(sides)), np.int64)
    for one, stride in strides.items():
        starts[:, one] = numbers[first] // stride % sides[one] + low[one]
    stops = starts + 1
    stops[:, axis] = starts[:, axis] + (numbers[last] - numbers[first]) + 1
    return starts, stops


def _strides(sides: list[int]) -> list[int]:
    return [prod(sides[place + 1 :]) for place in range(len(sides))]


def _all_joined(boxes: _Boxes) -> _Boxes:
    """Join boxes along every axis, the last first, until nothing more can be joined."""
    count = -1
    while count != _count(boxes):
        count = _count(boxes)
        for axis in range(boxes[0].shape[1] - 1, -1, -1):
            boxes = _joined(boxes, axis)
    return boxes


def _joined(boxes: _Boxes, axis: int) -> _Boxes:
    """Join boxes that touch along one axis and are alike along the others."""
    starts, stops = boxes
    columns = [starts[:, axis]]
    for other in range(starts.shape[1]):
        if other != axis:
            columns += [starts[:, other], stops[:, other]]
    order = np.lexsort(columns)
    starts, stops = starts[order], stops[order]
    fresh = np.ones(len(starts), bool)
    fresh[1:] = starts[1:, axis] > stops[:-1, axis]
    for other in range(starts.shape[1]):
        if other != axis:
            fresh[1:] |= starts[1:, other] != starts[:-1, other]
            fresh[1:] |= stops[1:, other] != stops[:-1, other]
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(starts)) - 1
    joined = stops[first]
    joined[:, axis] = stops[last, axis]
    return starts[first], joined
