"""Morton codes: in bulk as one by one, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.errors import LimitError
from cas_zarr.tree import morton


@st.composite
def grids(draw: st.DrawFn) -> np.ndarray:
    """Some coordinates of one to 32 dimensions, small, large or at the limit."""
    ndim = draw(st.integers(1, 32))
    highest = draw(st.sampled_from([1, 9, 255, 256, 4096, 2**21, 2**31, 2**32 - 1]))
    row = st.lists(st.integers(0, highest), min_size=ndim, max_size=ndim)
    return np.array(draw(st.lists(row, min_size=1, max_size=6)), np.int64)


def code_by_definition(coordinates: list[int]) -> int:
    ndim = len(coordinates)
    code = 0
    for axis, coordinate in enumerate(coordinates):
        for bit in range(32):
            if coordinate >> bit & 1:
                code |= 1 << (bit * ndim + ndim - 1 - axis)
    return code


@given(grids())
def test_bulk_is_scalar_is_the_definition_and_all_have_an_inverse(grid: np.ndarray) -> None:
    codes = morton.encode(grid)
    ndim = grid.shape[1]
    for row, code in zip(grid.tolist(), codes.tolist(), strict=True):
        assert code == code_by_definition(row) == morton.code_of(tuple(row))
        assert morton.coordinates_of(code, ndim) == tuple(row)
    assert morton.decode(codes, ndim).tolist() == grid.tolist()
    assert morton.decode(codes.astype(object), ndim).tolist() == grid.tolist()
    assert morton.decode(morton.fit(codes), ndim).tolist() == grid.tolist()


@pytest.mark.parametrize("ndim", range(1, 33))
def test_codes_that_fill_a_word_are_decoded_to_its_last_bit(ndim: int) -> None:
    codes = [code % 2 ** (32 * ndim) for code in (2**63, 2**64 - 1, 2**62, 1, 0)]
    expected = [morton.coordinates_of(code, ndim) for code in codes]
    assert morton.decode(np.array(codes, np.uint64), ndim).tolist() == list(map(list, expected))


def test_codes_wider_than_a_word_are_python_integers() -> None:
    assert morton.encode(np.array([[2**21 - 1] * 3])).dtype == np.uint64
    wide = morton.encode(np.array([[2**21] * 3]))
    assert wide.dtype == object
    assert type(wide[0]) is int
    assert morton.code_bits(32) == 1024


def test_without_dimensions_there_is_one_code() -> None:
    assert morton.encode(np.zeros((1, 0), np.int64)).tolist() == [0]
    assert morton.decode(np.zeros(1, np.uint64), 0).shape == (1, 0)
    assert morton.code_of(()) == 0
    assert morton.encode(np.zeros((0, 3), np.int64)).tolist() == []


@pytest.mark.parametrize("coordinate", [-1, 2**32, 2**40])
def test_coordinates_beyond_32_bits_are_refused(coordinate: int) -> None:
    with pytest.raises(LimitError, match="beyond"):
        morton.encode(np.array([[0, coordinate]]))


@given(st.lists(st.integers(0, 2**70), min_size=1))
def test_bit_lengths_fit_and_search_take_both_kinds_of_arrays(values: list[int]) -> None:
    values = sorted(set(values))
    wide = np.array(values, object)
    assert morton.bit_lengths(wide).tolist() == [value.bit_length() for value in values]
    fitted = morton.fit(wide)
    assert fitted.tolist() == values
    assert (fitted.dtype == object) == (values[-1] >= 2**64)
    for codes in (wide, fitted):
        for probe in (0, values[0], values[-1] + 1, 2**69):
            assert morton.search(codes, probe) == sum(value < probe for value in values)
    small = [value for value in values if value < 2**64]
    array = np.array(small, np.uint64)
    assert morton.bit_lengths(array).tolist() == [value.bit_length() for value in small]
