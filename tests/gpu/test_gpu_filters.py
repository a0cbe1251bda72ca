"""Shuffled bytes and rounded mantissas of a device, held to numcodecs.

`python tests/gpu/test_gpu_filters.py LIBRARY [OVERRUN]` rounds numbers that fill allocations to
their last byte, or claims OVERRUN more of them: for a library that a sanitizer watches.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from gpu.arrays import create, field
from gpu.fakecupy import Fake, on_device
from gpu.hostkernels import address_of, run_threads, watched
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import default_buffer_prototype

from cas_zarr import CASStore, gpu
from cas_zarr.gpu.bitround import plan_rounding, rounded
from cas_zarr.gpu.frames import Shuffle
from cas_zarr.gpu.kernels import source
from cas_zarr.gpu.pipeline import _for_device

try:
    from zarr.codecs import numcodecs as codecs
except ImportError:  # before zarr 3.1.3
    codecs = None  # type: ignore[assignment]

needs_codecs = pytest.mark.skipif(codecs is None, reason="this zarr has no codecs of numcodecs")
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")

WIDTHS = [1, 2, 3, 4, 5, 8, 12, 16, 255, 256]
MANTISSA = {"f2": 10, "f4": 23, "f8": 52}
KEPT = [(dtype, kept) for dtype, bits in MANTISSA.items() for kept in {0, 1, 7, bits - 1, bits}]


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def there(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return what copies an array to a device: the stand-in, and a real one where there is one."""
    if request.param == "cuda":
        yield request.getfixturevalue("cuda").asarray
        return
    request.getfixturevalue("fake")
    yield on_device


# -- shuffle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_bytes_are_shuffled_as_on_a_host(there: Any, width: int) -> None:
    random = np.random.default_rng(width)
    chunks = [random.integers(0, 256, count * width, np.uint8) for count in (1, 2, 7, 1000)]
    host, device = numcodecs.Shuffle(width), Shuffle(width)
    made = device.encode([there(chunk) for chunk in chunks])
    if width == 1:
        assert made == [None] * 4
        return
    for chunk, one in zip(chunks, made, strict=True):
        assert one.get().tobytes() == bytes(host.encode(chunk))
        assert one.flags.c_contiguous
    for chunk, one in zip(chunks, device.decode(made, [0] * len(made)), strict=True):
        assert one.get().tobytes() == chunk.tobytes()
        assert one.flags.c_contiguous


@pytest.mark.usefixtures("fake")
def test_no_whole_elements_are_left_to_the_host() -> None:
    given = [on_device(np.arange(size, dtype=np.uint8)) for size in (8, 9, 12)]
    for work in (Shuffle(4).encode, lambda chunks: Shuffle(4).decode(chunks, [0] * 3)):
        assert [one is None for one in work(given)] == [False, True, False]


@needs_codecs
@pytest.mark.parametrize(
    "options", [{}, {"elementsize": 2}, {"elementsize": 1}, {"elementsize": 3}]
)
def test_shuffled_arrays_have_the_cids_of_a_host(
    fake: Fake, tmp_path: Path, options: dict[str, int]
) -> None:
    data = field((96, 96))
    device, host = (CASStore(tmp_path / name) for name in ("device", "host"))
    chain = [codecs.Shuffle(**options)]
    with gpu.enabled():
        create(device, chain, data.shape, (48, 48))[:] = on_device(data)
        device.flush()
        fake.bus.clear()
        found = zarr.open_array(device, mode="r")[:]
        whole = 48 * 48 * 4 % options.get("elementsize", 4) == 0
        crossed = fake.bus.down > 4 * 32
        assert crossed == (options.get("elementsize") == 1 or not whole)
    np.testing.assert_array_equal(found.get(), data)
    create(host, chain, data.shape, (48, 48))[:] = data
    assert device.flush() == host.flush()


@needs_codecs
@pytest.mark.usefixtures("fake")
def test_an_element_is_one_of_the_array() -> None:
    array = zarr.create_array({}, shape=4, dtype="f8")
    codec = _for_device(codecs.Shuffle())
    spec = ArraySpec(
        (4,), array.metadata.data_type, 0.0, ArrayConfig.from_dict({}), default_buffer_prototype()
    )
    assert codec.evolve_from_array_spec(spec).frame == Shuffle(8)


@needs_codecs
def test_a_shuffle_before_an_encoder(fake: Fake, tmp_path: Path) -> None:
    data = field()
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        create(store, [codecs.Shuffle(), ZstdCodec()])[:] = on_device(data)
        np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:].get(), data)
    assert fake.library.decoded == 16
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


# -- bitround -------------------------------------------------------------------------------------


def numbers(dtype: str) -> NDArray[Any]:
    """Return all patterns of 16 bits, or many and all edges of the wider types."""
    width = 8 * np.dtype(dtype).itemsize
    if width == 16:
        return np.arange(1 << 16, dtype="u2").view(dtype)
    random = np.random.default_rng(width)
    bits = random.integers(0, 1 << width, 20_001, f"u{width // 8}", endpoint=False)
    info = np.finfo(dtype)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, info.min, info.tiny, info.eps, 1, -1]
    near = np.array(edges, dtype).view(bits.dtype)
    steps = np.arange(-3, 4).astype(bits.dtype)
    plain = random.normal(size=1000).astype(dtype).view(bits.dtype)
    return np.concatenate([bits, (near[:, None] + steps).ravel(), plain]).view(dtype)


@pytest.mark.parametrize(("dtype", "kept"), KEPT)
def test_numbers_are_rounded_as_on_a_host(there: Any, dtype: str, kept: int) -> None:
    data = numbers(dtype)
    expected = numcodecs.BitRound(kept).encode(data)
    found = rounded(there(data), kept).get()
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


def test_arrays_in_any_order_are_rounded(there: Any) -> None:
    data = np.random.default_rng(0).normal(size=(30, 40)).astype("f4")
    for view in (lambda each: each.T, lambda each: each[3:20, 5:30], lambda each: each[:0]):
        expected = numcodecs.BitRound(5).encode(np.ascontiguousarray(view(data)))
        np.testing.assert_array_equal(rounded(view(there(data)), 5).get(), expected)


@needs_codecs
@pytest.mark.parametrize(("dtype", "kept"), KEPT)
def test_rounded_arrays_have_the_cids_of_a_host(
    fake: Fake, tmp_path: Path, dtype: str, kept: int
) -> None:
    data = np.resize(numbers(dtype), (128, 128))
    device, host = (CASStore(tmp_path / name) for name in ("device", "host"))

    def make(store: CASStore) -> Any:
        filters = [codecs.BitRound(keepbits=kept)]
        return zarr.create_array(
            store, shape=(128, 128), chunks=(64, 64), dtype=dtype, filters=filters, compressors=None
        )

    with gpu.enabled():
        array = make(device)
        fake.bus.clear()
        array[:] = on_device(data)
        encoded = sum(
            device._tree.mapping.size_of(f"c/{row}/{n}") for row in (0, 1) for n in (0, 1)
        )
        assert fake.bus.down <= encoded + 4 * 48  # no chunk was done on the host
        found = array[:].get()
    make(host)[:] = data
    assert device.flush() == host.flush()
    expected = zarr.open_array(host, mode="r")[:]
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


@needs_codecs
@pytest.mark.usefixtures("fake")
def test_what_cannot_be_rounded_is_refused_as_on_a_host(tmp_path: Path) -> None:
    for kept, dtype, error in ((11, "f2", ValueError), (3, "i4", TypeError)):
        with gpu.enabled():
            array = zarr.create_array(
                CASStore(tmp_path / dtype),
                shape=4,
                dtype=dtype,
                filters=[codecs.BitRound(keepbits=kept)],
                compressors=None,
            )
            with pytest.raises(error):
                array[:] = on_device(np.arange(1, 5).astype(dtype))


def test_no_byte_is_touched_that_is_not_of_a_number(compiler: Path, tmp_path: Path) -> None:
    done = watched(compiler, source("bitround"), tmp_path, __file__)
    assert done == (0, "numbers agree\n")


def test_the_sanitizer_would_tell(compiler: Path, tmp_path: Path) -> None:
    status, output = watched(compiler, source("bitround"), tmp_path, __file__, "1")
    assert status != 0
    assert "heap-buffer-overflow" in output


def main(path: str, overrun: str = "0") -> None:
    """Round numbers of all types, in allocations of their size."""
    library = ctypes.CDLL(path)
    for dtype, bits in MANTISSA.items():
        for kept in range(bits):
            data = numbers(dtype)[-1001:].copy()
            made = np.zeros(len(data), f"i{data.itemsize}")
            launch = plan_rounding(
                len(data) + int(overrun),
                data.itemsize,
                bits - kept,
                address_of(data),
                address_of(made),
            )
            run_threads(library, launch, 0, launch.blocks * launch.threads, kept % 2 == 1)
            if made.tobytes() != numcodecs.BitRound(kept).encode(data).tobytes():
                sys.exit(f"{dtype} with {kept} bits differs")
    print("numbers agree")


if __name__ == "__main__":
    main(*sys.argv[1:])
