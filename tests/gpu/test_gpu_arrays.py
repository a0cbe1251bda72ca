"""Arrays on a device through zarr and the store: what is written, what is read, what is copied.

The device is a stand-in (see fakecupy.py); all of the package runs as it does with a GPU.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.core.buffer.core
from gpu.arrays import CHUNK, CODECS, SIDE, create, encoded_size, field
from gpu.fakecupy import DeviceArray, Fake, on_device
from numcodecs import GZip, Zstd

from cas_zarr import CASStore, gpu
from cas_zarr.errors import (
    CorruptBlockError,
    InvalidArgumentError,
    LimitError,
    MissingDependencyError,
)
from cas_zarr.gpu.buffers import carry
from cas_zarr.gpu.gather import prefers_gathering

LZ4 = pytest.importorskip("zarr.codecs.numcodecs").LZ4  # of zarr 3.1.3 and later


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
    digests, statuses, empty = 10 * 32, 10 * 12 * (codec != "none"), 10 * 1
    missing = sizes[share // 10 :]
    rounding = 15 * len(missing) * prefers_gathering(missing)
    assert 0 <= fake.bus.down - (sum(missing) + digests + statuses + empty) <= rounding
    store.commit("after")
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


def test_equal_chunks_of_a_batch_cross_once(fake: Fake, tmp_path: Path) -> None:
    data = np.tile(field((64, 64)), (8, 1))
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = create(store, [], (512, 64))
        fake.bus.clear()
        array[:] = on_device(data)
    assert fake.bus.down == 64 * 64 * 4 + 8 * 32 + 8  # whether a chunk is empty takes a byte
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_chunks_of_several_leaves_are_files_as_ever(fake: Fake, tmp_path: Path, hash: str) -> None:
    data = np.random.default_rng(0).random((1 << 20) + 5, "float32")  # 4 MiB and 20 bytes
    store, plain = (CASStore(tmp_path / name, hash=hash) for name in ("device", "host"))
    with gpu.enabled():
        array = create(store, [], data.shape, data.shape)
        fake.bus.clear()
        array[:] = on_device(data)
    assert fake.bus.down == data.nbytes + 5 * 32 + 1
    create(plain, [], data.shape, data.shape)[:] = data
    assert store._tree.mapping.cid_of("c/0") == plain._tree.mapping.cid_of("c/0")
    with gpu.enabled():
        found = zarr.open_array(store, mode="r")[:]
    np.testing.assert_array_equal(found.get(), data)


@pytest.mark.parametrize("codecs", [*CODECS, "lz4"])
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_a_device_reads_what_a_host_wrote(fake: Fake, tmp_path: Path, codecs: str) -> None:
    chain = [LZ4()] if codecs == "lz4" else CODECS[codecs]
    data = field()
    store = CASStore(tmp_path / "repository")
    create(store, chain)[:] = data
    store.commit("written on a host")
    with gpu.enabled():
        array = zarr.open_array(CASStore(tmp_path / "repository", read_only=True))
        fake.bus.clear()
        found = array[:]
    assert isinstance(found, DeviceArray)
    chunks = (SIDE // CHUNK[0]) ** 2
    slots = encoded_size(store) + 255 * chunks
    assert encoded_size(store) <= fake.bus.up <= slots + 200 * chunks  # tables of few columns
    assert fake.bus.down <= chunks * (32 + 44)  # digests; sizes and heads
    np.testing.assert_array_equal(found.get(), data)
    assert (fake.library.decoded == chunks) == (codecs != "none")


def test_frames_that_a_library_does_not_know_are_decoded_on_the_host(
    fake: Fake, tmp_path: Path
) -> None:
    data = field((64, 64))
    raw = data.tobytes()
    store = CASStore(tmp_path / "repository")
    two_frames = Zstd(level=1).encode(raw[:8192]) + Zstd(level=1).encode(raw[8192:])
    two_members = GZip(level=1).encode(raw[:8192]) + GZip(level=1).encode(raw[8192:])
    for codecs, encoded in ((CODECS["zstd"], two_frames), (CODECS["gzip"], two_members)):
        create(store, codecs, (64, 64))
        store._tree.mapping["c/0/0"] = bytes(encoded)
        with gpu.enabled():
            found = zarr.open_array(store, mode="r")[:]
        np.testing.assert_array_equal(found.get(), data)
    assert fake.library.decoded == 0


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_damaged_bytes_are_not_decoded(fake: Fake, tmp_path: Path, hash: str) -> None:
    store = CASStore(tmp_path / "repository", hash=hash)
    create(store, CODECS["zstd"])[:] = field()
    store.commit("sound")
    encoded = bytes(store._tree.mapping["c/1/1"])
    store.close()
    packs = [file for file in (tmp_path / "repository").rglob("*") if file.is_file()]
    hit = [file for file in packs if encoded in file.read_bytes()]
    assert hit
    for file in hit:
        content = bytearray(file.read_bytes())
        content[content.index(encoded) + len(encoded) // 2] ^= 1
        file.chmod(0o644)
        file.write_bytes(content)
    with gpu.enabled():
        array = zarr.open_array(CASStore(tmp_path / "repository", read_only=True))
        with pytest.raises(CorruptBlockError):
            array[:]
        assert fake.library.decoded == 0
        np.testing.assert_array_equal(array[:64, :64].get(), field()[:64, :64])


@pytest.mark.usefixtures("fake")
def test_a_claimed_size_gets_no_memory(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "repository")
    array = create(store, [])
    array[:] = field()
    mapping = store._tree.mapping
    cid = mapping.cid_of("c/0/0")
    assert cid is not None
    mapping.bind("c/0/0", cid, 1 << 40)
    with gpu.enabled(), pytest.raises(LimitError, match="claims 1099511627776 bytes"):
        zarr.open_array(store, mode="r")[:]


@pytest.mark.usefixtures("fake")
def test_a_buffer_that_is_asked_for_alone_is_verified(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "repository")
    create(store, CODECS["zstd"])[:] = field()
    prototype = zarr.core.buffer.core.default_buffer_prototype
    expected = bytes(store._tree.mapping["c/0/0"])
    with gpu.enabled():
        for ask in (lambda each: each.to_bytes(), lambda each: each[:].to_bytes()):
            found = store.get_sync("c/0/0", prototype=prototype())
            assert found is not None
            assert ask(found) == expected
        assert len(store.get_sync("c/0/0", prototype=prototype()) or b"") == len(expected)
        assert store.get_sync("c/9/9", prototype=prototype()) is None


@pytest.mark.usefixtures("fake")
def test_arrays_of_a_host_and_missing_chunks(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "repository")
    data = field()
    with gpu.enabled():
        array = create(store, CODECS["zstd"])
        array[:128] = data[:128]  # of NumPy
        array[100:110, 3:7] = on_device(data[100:110, 3:7] + 1)  # parts of chunks
        found = array[:].get()
    expected = np.zeros_like(data)
    expected[:128] = data[:128]
    expected[100:110, 3:7] += 1
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], expected)
    assert not store._tree.mapping.exists("c/3/0")


@pytest.mark.usefixtures("fake")
def test_shards_and_arrays_without_dimensions(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "repository")
    data = field()
    with gpu.enabled():
        array = zarr.create_array(
            store, name="a", shape=data.shape, shards=(128, 128), chunks=CHUNK, dtype="float32"
        )
        array[:] = on_device(data)
        zarr.create_array(store, name="b", shape=(), dtype="float32")[...] = 3
        np.testing.assert_array_equal(array[10:200, 7].get(), data[10:200, 7])
        np.testing.assert_array_equal(array[:].get(), data)
    group = zarr.open_group(store, mode="r")
    np.testing.assert_array_equal(group["a"][:], data)
    assert group["b"][...] == 3


def test_a_batch_is_halved_while_memory_does_not_suffice(fake: Fake, tmp_path: Path) -> None:
    store = CASStore(tmp_path / "repository")
    data = field((512, 64))
    with gpu.enabled():
        array = create(store, CODECS["zstd"], data.shape)
        given = on_device(data)
        fake.cupy.memory.largest = 40_000  # two chunks of 16 KiB
        array[:] = given
        assert sum(name.endswith("ZstdCompressAsync") for name in fake.library.calls) == 4
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


@pytest.mark.usefixtures("fake")
def test_several_threads_write_at_once(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "repository")
    fields = [field(seed=seed) for seed in range(4)]
    with gpu.enabled():
        arrays = [
            zarr.create_array(store, name=f"a{n}", shape=(SIDE, SIDE), chunks=CHUNK, dtype="f4")
            for n in range(4)
        ]

        def write(row: int) -> None:
            arrays[row][:] = on_device(fields[row])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
    group = zarr.open_group(store, mode="r")
    for row, data in enumerate(fields):
        np.testing.assert_array_equal(group[f"a{row}"][:], data)


@pytest.mark.usefixtures("fake")
def test_a_buffer_that_was_changed_is_stored_as_it_is(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "repository")
    create(store, [])
    with gpu.enabled():
        kind = zarr.core.buffer.core.default_buffer_prototype().buffer
        buffers = carry([kind.from_bytes(bytes(100)), None, kind.from_bytes(b"")])
        assert buffers[1] is None
        store.set_sync("c/0/1", buffers[2])  # the whole batch is hashed and copied now
        buffers[0][:1] = 7
        store.set_sync("c/0/0", buffers[0])
    assert store._tree.mapping["c/0/0"] == b"\7" + bytes(99)
    assert store._tree.mapping["c/0/1"] == b""


@pytest.mark.parametrize("codecs", ["zstd", "none"])
def test_what_was_read_is_there(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codecs: str
) -> None:
    store = CASStore(tmp_path / "repository")
    create(store, CODECS[codecs])[:] = field()
    done: list[str] = []
    write, wait = DeviceArray.__setitem__, fake.cupy.cuda.Stream.synchronize
    monkeypatch.setattr(
        DeviceArray, "__setitem__", lambda *given: (done.append("written"), write(*given))
    )
    monkeypatch.setattr(
        fake.cupy.cuda.Stream, "synchronize", lambda stream: (done.append("waited"), wait(stream))
    )
    with gpu.enabled():
        zarr.open_array(store, mode="r")[:]
    assert "written" in done
    assert done[-1] == "waited"


@pytest.mark.usefixtures("fake")
def test_settings_are_restored_and_nest() -> None:
    names = ("buffer", "ndbuffer", "codec_pipeline.path", "codec_pipeline.batch_size")
    before = [zarr.config.get(name) for name in names]
    with gpu.enabled():
        assert zarr.config.get("codec_pipeline.batch_size") == 64
        with gpu.enabled(batch_size=128):
            assert zarr.config.get("codec_pipeline.batch_size") == 128
        assert zarr.config.get("codec_pipeline.batch_size") == 64
    assert [zarr.config.get(name) for name in names] == before
    with pytest.raises(InvalidArgumentError, match="1 or more"):
        gpu.enabled(batch_size=0)


def test_what_is_missing_is_told(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.require()
    fake.cupy.devices = 0
    with pytest.raises(MissingDependencyError, match="shows no GPU"):
        gpu.require()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingDependencyError, match="cas_zarr"):
        gpu.enabled()
