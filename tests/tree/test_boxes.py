"""Boxes cover just the cells that were given, each once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cas_zarr.errors import InvalidArgumentError
from cas_zarr.tree.boxes import merge_boxes


def covered(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> list[tuple[int, ...]]:
    return [
        cell
        for low, high in zip(starts.tolist(), stops.tolist(), strict=True)
        for cell in itertools.product(*map(range, low, high))
    ]


def cells_of(*boxes: tuple[slice, ...]) -> NDArray[np.int64]:
    ranges = [itertools.product(*(range(s.start, s.stop) for s in box)) for box in boxes]
    return np.array(list(itertools.chain(*ranges)), np.int64)


@st.composite
def cells(draw: st.DrawFn) -> NDArray[np.int64]:
    ndim = draw(st.integers(1, 4))
    scale = draw(st.sampled_from([1, 1, 1, 1 << 20]))
    rows = draw(st.lists(st.tuples(*[st.integers(0, 4)] * ndim), max_size=60))
    return np.array(rows, np.int64).reshape(len(rows), ndim) * scale + draw(st.integers(0, 9))


@given(cells())
@settings(max_examples=300)
def test_cells_are_covered_once_and_nothing_else_is(given_: NDArray[np.int64]) -> None:
    starts, stops = merge_boxes(given_)
    assert starts.dtype == stops.dtype == np.int64
    found = covered(starts, stops)
    assert len(set(found)) == len(found)
    assert set(found) == {tuple(cell) for cell in given_.tolist()}
    assert starts.tolist() == sorted(starts.tolist())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_across_any_axis_is_one_box(axis: int) -> None:
    box = [slice(2, 7), slice(0, 5), slice(10, 13)]
    box[axis] = slice(3, 4)
    starts, stops = merge_boxes(np.random.default_rng(0).permutation(cells_of(tuple(box))))
    assert starts.tolist() == [[s.start for s in box]]
    assert stops.tolist() == [[s.stop for s in box]]


def test_the_axis_that_gives_the_fewest_boxes_is_begun_with() -> None:
    for turn in (False, True):
        square = (slice(0, 9), slice(0, 9))
        strips = [(slice(9, 20), slice(y, y + 1)) for y in range(0, 9, 2)]
        given_ = cells_of(square, *strips)
        starts, _ = merge_boxes(given_[:, ::-1] if turn else given_)
        assert len(starts) <= 9


def test_a_million_cells_of_a_grid_are_one_box() -> None:
    grid = np.indices((100, 100, 100)).reshape(3, -1).T
    starts, stops = merge_boxes(grid)
    assert (starts.tolist(), stops.tolist()) == ([[0, 0, 0]], [[100, 100, 100]])
    starts, stops = merge_boxes(np.delete(grid, 555_555, axis=0))
    assert len(starts) <= 7
    assert (stops - starts).prod(axis=1).sum() == 999_999


def test_corners() -> None:
    assert [part.shape for part in merge_boxes(np.zeros((0, 3), np.int64))] == [(0, 3)] * 2
    assert [part.shape for part in merge_boxes(np.zeros((1, 0), np.int64))] == [(1, 0)] * 2
    far = np.array([[2**32 - 1] * 4, [0] * 4, [0, 0, 0, 1]], np.uint64)
    starts, stops = merge_boxes(far)
    assert covered(starts, stops) == [(0, 0, 0, 0), (0, 0, 0, 1), (2**32 - 1,) * 4]
    assert len(starts) == 2
    twice = np.array([[1, 1], [1, 1], [1, 2]], np.int32)
    assert [part.tolist() for part in merge_boxes(twice)] == [[[1, 1]], [[2, 3]]]
    for wrong in (np.zeros(3, np.int64), np.zeros((3, 2))):
        with pytest.raises(InvalidArgumentError, match="shape"):
            merge_boxes(wrong)
