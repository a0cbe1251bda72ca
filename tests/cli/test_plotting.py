"""Maps of chunks as pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cas_zarr.cli.plotting import ADDED, CHANGED, MAX_MAPS, REMOVED, ChunkMap, draw, picture_of
from cas_zarr.errors import StorageError

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


def a_map(
    grid: tuple[int, ...], places: list[tuple[int, ...]], state: int = CHANGED, path: str = "t2m"
) -> ChunkMap:
    coordinates = np.array(places, np.int64).reshape(len(places), len(grid))
    return ChunkMap(path, grid, (), coordinates, np.full(len(places), state, np.uint8))


def test_a_grid_of_two_dimensions_is_a_map_of_states() -> None:
    picture = picture_of(a_map((3, 4), [(0, 0), (2, 3)], ADDED))
    assert not picture.summed
    assert picture.cells.tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]]


def test_sides_of_one_chunk_are_left_out() -> None:
    picture = picture_of(a_map((5, 1, 1), [(3, 0, 0)], REMOVED))
    assert not picture.summed
    assert picture.cells.tolist() == [[0, 0, 0, 3, 0]]
    assert picture.axes == (0,)


@pytest.mark.parametrize("grid", [(), (1,), (1, 1)])
def test_one_chunk_is_a_cell(grid: tuple[int, ...]) -> None:
    picture = picture_of(a_map(grid, [(0,) * len(grid)]))
    assert picture.cells.tolist() == [[CHANGED]]


def test_three_dimensions_are_shares_along_the_shortest() -> None:
    picture = picture_of(a_map((4, 2, 3), [(0, 0, 0), (0, 1, 0), (3, 1, 2)]))
    assert picture.summed
    assert picture.axes == (0, 2)
    expected = np.zeros((4, 3))
    expected[0, 0], expected[3, 2] = 1.0, 0.5
    np.testing.assert_array_equal(picture.cells, expected)


def test_one_chunk_of_a_million_is_seen() -> None:
    picture = picture_of(a_map((1_000_000,), [(999_999,)]))
    assert picture.cells.shape[1] <= 64
    assert np.count_nonzero(picture.cells) == 1
    assert picture.cells[0, -1] > 0
    # the last cell stands for fewer chunks than the others
    full = picture_of(a_map((130,), [(place,) for place in range(130)]))
    np.testing.assert_array_equal(full.cells, np.ones_like(full.cells))


@needs_matplotlib
def test_pictures_of_all_shapes(tmp_path: Path) -> None:
    maps = [
        a_map((), [()]),
        a_map((9,), [(3,)], ADDED),
        a_map((3, 4), [(0, 1)], REMOVED, path="a/" * 60 + "$x_1^$"),
        a_map((0, 4), []),
        a_map((4, 5, 6), [(0, 1, 2)], path="\u65e5\ud800"),
        a_map((1000, 3), [(999, 2)]),
    ]
    for number in (0, 1, 6, 18):
        file = tmp_path / f"{number}.png"
        draw((maps * 3)[:number], file, title="main~1 → main")
        assert file.read_bytes().startswith(b"\x89PNG")
    assert len(maps * 3) > MAX_MAPS


@needs_matplotlib
def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the picture cannot be written to"):
        draw([], tmp_path / "nowhere" / "x.png")
