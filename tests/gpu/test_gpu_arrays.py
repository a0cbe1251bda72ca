"""Arrays on a device through zarr and the store: what is written, what is read, what is copied.

The device is a stand-in (see fakecupy.py); all of the package runs as it does with a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from gpu.fakecupy import FakeCupy, FakeNvcomp, on_device
from zarr.codecs import GzipCodec, ZstdCodec
from zarr.codecs.numcodecs import LZ4
from zarr.core.buffer import gpu as zarr_gpu

from cas_zarr import CASStore, gpu
from cas_zarr.gpu import hashing, kernels, nvcomp

SIDE = 256
CHUNK = (64, 64)  # of float32: 16 KiB
CODECS = {
    "zstd": [ZstdCodec(level=0, checksum=False)],
    "zstd with checksums": [ZstdCodec(level=0, checksum=True)],
    "gzip": [GzipCodec(level=1)],
    "none": [],
}


class Fake:
    """The device, and the library that encodes on it."""

    def __init__(self, cupy: FakeCupy, library: FakeNvcomp) -> None:
        self.cupy, self.library = cupy, library
        self.bus = cupy.bus


@pytest.fixture(scope="session")
def fake_cupy(compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> FakeCupy:
    """Return the stand-in for CuPy, which compiles its kernels once."""
    return FakeCupy(compiler, tmp_path_factory.mktemp("fakecupy"))


@pytest.fixture
def fake(fake_cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Return a device, in the place of the one that there is not; the smallest batch is for it."""
    library = FakeNvcomp()
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(zarr_gpu, "cp", fake_cupy)
    monkeypatch.setattr(nvcomp, "library", lambda: library)
    monkeypatch.setattr(hashing, "_BLAKE3_BYTES", 0)
    monkeypatch.setattr(hashing, "_SHA256_BLOBS_A_CORE", 0)
    kernels.loaded.cache_clear()
    fake_cupy.limit, fake_cupy.devices = None, 1
    fake_cupy.bus.clear()
    yield Fake(fake_cupy, library)
    kernels.loaded.cache_clear()


def field(shape: tuple[int, ...] = (SIDE, SIDE), seed: int = 0) -> Any:
    """Return numbers that can be compressed somewhat."""
    random = np.random.default_rng(seed)
    return np.round(random.normal(size=shape).cumsum(axis=-1), 1).astype("float32")


def create(store: CASStore, codecs: Any, shape: Any = (SIDE, SIDE), chunks: Any = CHUNK) -> Any:
    return zarr.create_array(
        store, shape=shape, chunks=chunks, dtype="float32", compressors=codecs, overwrite=True
    )


def encoded_size(store: CASStore) -> int:
    """Return the bytes of all chunks."""
    mapping = store._tree.mapping
    return sum(mapping.size_of(key) or 0 for key in mapping.list_keys("c/"))


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
@pytest.mark.parametrize("codecs", [*CODECS, "lz4"])
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_a_host_reads_what_a_device_wrote(
    fake: Fake, tmp_path: Path, codecs: str, hash: str
) -> None:
    chain = [LZ4()] if codecs == "lz4" else CODECS[codecs]
    data = field()
    store = CASStore(tmp_path / "repository", hash=hash)
    with gpu.enabled():
        create(store, chain)[:] = on_device(data)
    store.commit("written on a device")
    there = zarr.open_array(CASStore(tmp_path / "repository", read_only=True))
    np.testing.assert_array_equal(there[:], data)
    plain = CASStore(tmp_path / "other", hash=hash)
    create(plain, chain)
    assert store._tree.mapping["zarr.json"] == plain._tree.mapping["zarr.json"]
    on_library = codecs in ("zstd", "gzip", "lz4")
    assert any(name.endswith("CompressAsync") for name in fake.library.calls) == on_library


@pytest.mark.parametrize("share", [0, 50, 90, 100])
@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_only_missing_bytes_come_to_the_host(
    fake: Fake, tmp_path: Path, share: int, codec: str
) -> None:
    data, old = field((640, 64)), field((640, 64), seed=1)
    old[: 64 * (share // 10)] = data[: 64 * (share // 10)]
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        create(store, CODECS[codec], (640, 64))[:] = on_device(old)
        store.commit("before")
        array = create(store, CODECS[codec], (640, 64))
        fake.bus.clear()
        array[:] = on_device(data)
    sizes = [store._tree.mapping.size_of(f"c/{row}/0") or 0 for row in range(10)]
    digests, statuses = 10 * 32, 10 * 12 * (codec != "none")
    assert fake.bus.down == sum(sizes[share // 10 :]) + digests + statuses
    store.commit("after")
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


def test_equal_chunks_of_a_batch_cross_once(fake: Fake, tmp_path: Path) -> None:
    data = np.tile(field((64, 64)), (8, 1))
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = create(store, [], (512, 64))
        fake.bus.clear()
        array[:] = on_device(data)
    assert fake.bus.down == 64 * 64 * 4 + 8 * 32
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_chunks_of_several_leaves_are_files_as_ever(fake: Fake, tmp_path: Path, hash: str) -> None:
    data = np.random.default_rng(0).random((1 << 20) + 5, "float32")  # 4 MiB and 20 bytes
    store, plain = (CASStore(tmp_path / name, hash=hash) for name in ("device", "host"))
    with gpu.enabled():
        array = create(store, [], data.shape, data.shape)
        fake.bus.clear()
        array[:] = on_device(data)
    assert fake.bus.down == data.nbytes + 5 * 32
    create(plain, [], data.shape, data.shape)[:] = data
    assert store._tree.mapping.cid_of("c/0") == plain._tree.mapping.cid_of("c/0")
    with gpu.enabled():
        found = zarr.open_array(store, mode="r")[:]
    np.testing.assert_array_equal(np.asarray(found), data)
