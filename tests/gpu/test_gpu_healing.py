"""Blocks that are damaged, read to a device and written from one; bytes that nobody verified."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from gpu.arrays import CODECS, create, field
from gpu.fakecupy import Fake, on_device
from numcodecs import Zstd
from zarr.storage import LocalStore, MemoryStore

from cas_zarr import CASStore, gpu
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.errors import CorruptBlockError
from cas_zarr.gpu.batches import load
from cas_zarr.tree.node import Value

SHAPE, CHUNK = (256, 256), (64, 64)


def packs(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*.car") if file.is_file())


def damage(file: Path, data: bytes) -> None:
    """Flip a bit of a block."""
    content = bytearray(file.read_bytes())
    content[content.index(data) + len(data) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def written(folder: Path, codec: str, data: Any, hash: str = "blake3") -> tuple[CidBytes, bytes]:
    """Write an array on the host; return the CID and the bytes of one chunk."""
    with CASStore(folder, hash=hash) as store:
        create(store, CODECS[codec])[:] = data
        store.commit("sound")
        mapping = store._tree.mapping
        cid, encoded = mapping.cid_of("c/1/1"), bytes(mapping["c/1/1"])
    assert cid is not None
    return cid, encoded


@pytest.mark.parametrize("hash", ["blake3", "sha2-256"])
def test_a_sound_copy_in_another_pack_is_read(fake: Fake, tmp_path: Path, hash: str) -> None:
    data = field()
    cid, encoded = written(tmp_path / "one", "zstd", data, hash)
    written(tmp_path / "two", "zstd", data, hash)
    [first] = packs(tmp_path / "one")
    for number, file in enumerate(packs(tmp_path / "two")):
        shutil.copy(file, first.with_name(f"{number:064x}.car"))
    folder = tmp_path / "one"
    store = CASStore(folder, version="main")
    blocks = store._tree.mapping.blocks
    assert isinstance(blocks, LocalBlocks)
    found = blocks._find(cid[-34:])
    assert found is not None
    damage(Path(found[0].path), encoded)
    store.close()
    with gpu.enabled():
        store = CASStore(folder, version="main")
        np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:].get(), data)
        blocks = store._tree.mapping.blocks
        assert isinstance(blocks, LocalBlocks)
        assert cid[-34:] in blocks._rotten  # it was met
    assert fake.library.decoded == 16


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_a_damaged_block_is_written_anew(fake: Fake, tmp_path: Path, codec: str) -> None:
    data = field()
    folder = tmp_path / "repository"
    with gpu.enabled():
        with CASStore(folder) as store:
            create(store, CODECS[codec])[:] = on_device(data)
            store.commit("sound")
            mapping = store._tree.mapping
            cid, encoded = mapping.cid_of("c/1/1"), bytes(mapping["c/1/1"])
        [pack] = (file for file in packs(folder) if encoded in file.read_bytes())
        damage(pack, encoded)
        with CASStore(folder) as store:
            array = zarr.open_array(store)
            with pytest.raises(CorruptBlockError):
                array[:]
            fake.bus.clear()
            array[:] = on_device(data)
            sent = len(encoded) + 16 * 32 + 16 * 12 * (codec != "none")
            # digests, sizes and statuses, and that one block; and whether chunks are empty
            assert 0 <= fake.bus.down - sent <= 16
            assert store._tree.mapping.cid_of("c/1/1") == cid
            store.commit("healed")
        store = CASStore(folder, version="main")
        np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:].get(), data)


def test_a_block_of_another_length_is_healed_or_refused(fake: Fake, tmp_path: Path) -> None:
    cid, encoded = written(tmp_path / "repository", "none", field())
    store = CASStore(tmp_path / "repository", version="main")
    reader = store._tree.mapping.reader
    [array] = load(reader, [Value(cid, len(encoded))])
    assert array.get().tobytes() == encoded
    with pytest.raises(CorruptBlockError):
        load(reader, [Value(cid, len(encoded) - 1)])
    del fake


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize("codec", ["zstd", "gzip", "none"])
def test_bytes_of_other_stores_are_decoded_on_the_host(
    fake: Fake, tmp_path: Path, kind: str, codec: str
) -> None:
    data = field()
    store: Any = LocalStore(tmp_path / "zarr") if kind == "local" else MemoryStore()
    with gpu.enabled():
        create(store, CODECS[codec])[:] = on_device(data)
        found = zarr.open_array(store, mode="r")[:]
    np.testing.assert_array_equal(found.get(), data)
    assert fake.library.decoded == 0  # its decoders take for granted that their input is valid
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


def test_bytes_of_format_2_of_other_stores_are_decoded_on_the_host(fake: Fake) -> None:
    data, store = field(), MemoryStore()
    with gpu.enabled():
        array = zarr.create_array(
            store,
            shape=SHAPE,
            chunks=CHUNK,
            dtype="f4",
            compressors=[Zstd(level=1)],
            zarr_format=2,
        )
        array[:] = on_device(data)
        np.testing.assert_array_equal(array[:].get(), data)
    assert fake.library.decoded == 0


def test_bytes_that_a_store_verified_are_decoded_on_the_device(fake: Fake, tmp_path: Path) -> None:
    data = field()
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = zarr.create_array(
            store, shape=SHAPE, shards=SHAPE, chunks=CHUNK, dtype="f4", compressors=CODECS["zstd"]
        )
        array[:] = on_device(data)
        np.testing.assert_array_equal(array[:].get(), data)
        assert fake.library.decoded == 16  # chunks within a shard, which is verified as a whole
        np.testing.assert_array_equal(array[3:9, 60:70].get(), data[3:9, 60:70])
        assert fake.library.decoded == 16 + 2  # ranges of a shard
