"""A pack is checked bit for bit, and what is sound in a damaged one is found."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cas_zarr.blocks import packcheck
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.pack import EMPTY_PAYLOAD, MAX_SECTION
from cas_zarr.blocks.packcheck import check_pack, pack_paths, salvage
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, RAW, SHA256, CidBytes, cid_of
from cas_zarr.codecs.car import DATA_START, section_head
from cas_zarr.codecs.dagcbor import encode
from cas_zarr.codecs.unixfs import build_file
from cas_zarr.errors import StorageError

Blocks = dict[CidBytes, bytes]


def make_blocks() -> Blocks:
    chance = random.Random(3)
    blocks: Blocks = {}
    for number, size in enumerate((0, 1, 5, 90, 91, 127, 128, 1000, 20_000, 70_000)):
        data = chance.randbytes(size)
        blocks[cid_of(RAW, (BLAKE3, SHA256)[number % 2], data)] = data
    leaves = [(cid, len(data)) for cid, data in blocks.items() if data]
    blocks.update(build_file(leaves, BLAKE3)[1])
    for codec, data in ((DAG_CBOR, encode({"a": [1, 2, 3]})), (DAG_JSON, b'{"a":1}')):
        blocks[cid_of(codec, BLAKE3, data)] = data
    return blocks


@pytest.fixture
def pack(tmp_path: Path) -> tuple[Path, Blocks]:
    blocks = make_blocks()
    store = LocalBlocks(tmp_path / "packs", create=True)
    store.put_many(blocks.items())
    store.flush()
    store.close()
    (path,) = pack_paths(str(tmp_path / "packs"))
    os.chmod(path, 0o644)
    return Path(path), blocks


def places(pack: Path, blocks: Blocks) -> dict[str, list[int]]:
    """Return offsets of each part of the file: header, what stands before blocks, blocks, index."""
    data = pack.read_bytes()
    heads, bodies = [], []
    end = DATA_START + len(EMPTY_PAYLOAD)
    while end < len(data):
        found = next(
            (
                (cid, block)
                for cid, block in blocks.items()
                if data.startswith(section_head(cid, len(block)) + block, end)
            ),
            None,
        )
        if found is None:
            break
        begin = end + len(section_head(found[0], len(found[1])))
        heads += range(end, begin)
        end = begin + len(found[1])
        bodies += range(begin, end)
    start = DATA_START + len(EMPTY_PAYLOAD)
    return {
        "header": list(range(start)),
        "heads": heads,
        "bodies": random.Random(1).sample(bodies, 300),
        "index": list(range(end, len(data))),
    }


def test_a_whole_pack(pack: tuple[Path, Blocks]) -> None:
    path, blocks = pack
    told: list[tuple[int, int]] = []
    found = check_pack(str(path), progress=lambda *done: told.append(done))
    assert found.faults == ()
    assert found.suspects == frozenset()
    assert (found.blocks, found.size) == (len(blocks), path.stat().st_size)
    sizes = sum(map(len, blocks.values()))
    assert (sum(n for n, _ in told), sum(size for _, size in told)) == (len(blocks), sizes)
    assert check_pack(str(path), data=False).faults == ()
    assert dict(salvage(str(path))) == blocks


@pytest.mark.parametrize("part", ["header", "heads", "bodies", "index"])
def test_every_flipped_bit_is_found(pack: tuple[Path, Blocks], part: str) -> None:
    path, blocks = pack
    whole = path.read_bytes()
    chance = random.Random(part)
    chosen = places(path, blocks)[part]
    flips = [(at, bit) for at in chosen for bit in range(8)]
    for at, bit in chance.sample(flips, 200):
        data = bytearray(whole)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        found = check_pack(str(path))
        assert found.faults, (part, at, bit)
        assert str(path) in str(found.faults[0])
        if part != "bodies":  # what can be told without reading the blocks
            codec = part == "heads" and not check_pack(str(path), data=False).faults
            assert codec or check_pack(str(path), data=False).faults, (part, at, bit)
        saved = dict(salvage(str(path)))
        if part == "bodies":
            assert saved.items() <= blocks.items()
            assert len(saved) == len(blocks) - 1
        else:
            assert saved == blocks, (part, at, bit)


def test_what_a_damaged_pack_cannot_be_relied_on_for(pack: tuple[Path, Blocks]) -> None:
    """A store reads every block that is not suspect."""
    path, blocks = pack
    whole = path.read_bytes()
    chance = random.Random(5)
    offsets = [at for part in places(path, blocks).values() for at in part]
    for at in chance.sample(offsets, 150):
        data = bytearray(whole)
        data[at] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        found = check_pack(str(path))
        store = LocalBlocks(path.parent, read_only=True)
        for cid, block in blocks.items():
            if store.has(cid) and cid[-34:] not in found.suspects:
                assert store.get(cid) == block
        store.close()
        path.write_bytes(whole)


def test_two_damaged_sections_side_by_side(pack: tuple[Path, Blocks]) -> None:
    path, blocks = pack
    data = bytearray(path.read_bytes())
    order = sorted(blocks, key=lambda cid: data.find(section_head(cid, len(blocks[cid]))))
    for cid in order[3:5]:  # each has a block that begins with another byte now, and a bad length
        at = data.find(section_head(cid, len(blocks[cid])))
        data[at] ^= 2
        data[at + len(section_head(cid, len(blocks[cid])))] ^= 1
    path.write_bytes(data)
    assert len(check_pack(str(path)).faults) >= 2
    assert dict(salvage(str(path))) == {cid: blocks[cid] for cid in order[:3] + order[5:]}


def test_heads_are_read_at_once_and_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalBlocks(tmp_path / "packs", create=True)
    chance = random.Random(5)
    for number in range(3000):
        data = chance.randbytes(chance.choice((0, 3, 90, 91, 128, 400, 17_000, 70_000)))
        codec = (RAW, DAG_JSON)[number % 7 == 0]
        cid = cid_of(codec, (BLAKE3, SHA256)[number % 2], data)
        store.put(cid, data)
    store.flush()
    told: list[tuple[int, int]] = []
    (path,) = pack_paths(str(tmp_path / "packs"))
    quick = check_pack(path, data=False, progress=lambda *counts: told.append(counts))
    assert quick.faults == ()
    first = [sum(column) for column in zip(*told, strict=True)]
    told.clear()
    monkeypatch.setattr(packcheck._Checker, "_quick", lambda *_: False)
    assert check_pack(path, data=False, progress=lambda *counts: told.append(counts)) == quick
    assert [sum(column) for column in zip(*told, strict=True)] == first
    assert first[0] == quick.blocks
    assert len(told) > 1


@pytest.mark.parametrize("place", [0, 1, 2**63, 2**64 - 51, 2**64 - 1])
def test_an_index_that_says_anything(pack: tuple[Path, Blocks], place: int) -> None:
    path, _ = pack
    data = bytearray(path.read_bytes())
    for at in (len(data) - 8, len(data) - 8 - 40):
        changed = data.copy()
        changed[at : at + 8] = place.to_bytes(8, "little")
        path.write_bytes(changed)
        assert check_pack(str(path), data=False).faults


@pytest.mark.parametrize("size", [0, 10, 51, 60, 5000, -1, -1000])
def test_a_pack_that_is_cut_off(pack: tuple[Path, Blocks], size: int) -> None:
    path, blocks = pack
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    found = check_pack(str(path))
    assert found.faults
    saved = dict(salvage(str(path)))
    assert saved.items() <= blocks.items()
    assert (len(saved) == len(blocks)) == (size == -1)


def test_a_pack_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    chance = random.Random(0)
    for data in (b"", bytes(5000), b"\xff" * 5000, chance.randbytes(100_000)):
        path.write_bytes(data)
        assert check_pack(str(path)).faults
        assert list(salvage(str(path))) == []
    length = section_head(CidBytes(cid_of(RAW, BLAKE3, b"")), MAX_SECTION)
    path.write_bytes(bytes(DATA_START) + EMPTY_PAYLOAD + length * 100)
    assert list(salvage(str(path))) == []


def test_a_pack_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_pack(str(tmp_path / "x.car"))
    with pytest.raises(FileNotFoundError):
        list(salvage(str(tmp_path / "x.car")))
    with pytest.raises(StorageError):
        pack_paths(str(tmp_path / "nowhere"))
    (tmp_path / "folder.car").mkdir()
    with pytest.raises(StorageError):
        check_pack(str(tmp_path / "folder.car"))
