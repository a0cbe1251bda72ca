"""Import of plain UnixFS: what is linked, what is copied, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_PB, RAW, SHA256, CidBytes, cid_of, format_cid
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.dagpb import PBLink, PBNode
from cas_zarr.codecs.unixfs import build_file
from cas_zarr.codecs.unixfsdir import directory_blocks
from cas_zarr.errors import (
    CasZarrError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    InvalidKeyError,
    LimitError,
    NotFoundError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository import unixfsimport
from cas_zarr.repository.remotes import list_remotes
from cas_zarr.repository.unixfsimport import (
    import_unixfs,
    link_published,
    link_unixfs,
)
from cas_zarr.repository.unixfsview import UnixfsView
from cas_zarr.tree.directories import list_directory, resolve_path

ARRAY = b'{"zarr_format":3,"node_type":"array"}'
INLINE = CidBytes(b"\x01\x55\x00\x03abc")


def put(blocks: MemoryBlocks, data: bytes, codec: int = RAW) -> CidBytes:
    cid = cid_of(codec, SHA256, data)
    blocks.put(cid, data)
    return cid


def folder(blocks: MemoryBlocks, *links: PBLink) -> CidBytes:
    """Put a directory of links, whatever they are."""
    ordered = tuple(sorted(links, key=lambda link: (link.name or "").encode()))
    return put(blocks, dagpb.encode(PBNode(b"\x08\x01", ordered)), DAG_PB)


def document(blocks: MemoryBlocks) -> PBLink:
    return PBLink(put(blocks, ARRAY), "zarr.json", len(ARRAY))


def published(keys: dict[str, bytes]) -> tuple[MemoryBlocks, CidBytes, CidBytes]:
    """Return the blocks of a dataset and of its view, the root and the directory."""
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks)
    mapping.update(keys)
    root = mapping.flush()
    view = UnixfsView(blocks, root)
    for cid, data in view.blocks():
        if data is not None:
            blocks.put(cid, data)
    return blocks, root, view.cid


KEYS = {
    "zarr.json": ARRAY,
    **{f"c/{i}/{j}": b"%d" % (10 * i + j) for i in range(5) for j in range(7)},
    "c/5": b"of another tree",
    "c/note": b"a key",
    "x/deep/y": b"another key",
    "long": bytes(range(256)) * 5000,
    "c/0/9": bytes(range(256)) * 6000,
}


def test_an_import_of_a_view_has_the_root_that_the_view_is_of() -> None:
    blocks, root, cid = published(KEYS)
    mapping = CASMapping(MemoryBlocks())
    report = import_unixfs(mapping, blocks, cid)
    assert mapping.flush() == root
    assert (report.keys, report.size) == (len(KEYS), sum(map(len, KEYS.values())))
    assert report.linked == len(KEYS) - 1
    # directories: the root, c, five of rows, x and x/deep; a document; the tops of two files
    assert report.fetched == 9 + 1 + 2
    chunk = resolve_path(blocks, cid, "c/3/3").cid
    assert not mapping.blocks.has(chunk)
    held = CASMapping(TieredBlocks(mapping.blocks, [blocks]), root, read_only=True)
    assert dict(held) == KEYS


def test_a_scalar_and_a_sharded_directory_are_linked() -> None:
    keys = {"s/zarr.json": ARRAY, "s/c": b"0-d", "a/.zarray": b'{"zarr_format":2}'}
    keys |= {f"a/{i}": b"%d" % i for i in range(6000)}
    blocks, root, cid = published(keys)
    mapping = CASMapping(MemoryBlocks())
    seen: list[tuple[int, int]] = []
    report = import_unixfs(mapping, blocks, cid, progress=lambda *done: seen.append(done))
    assert mapping.flush() == root
    assert report.linked == 6001
    assert report.fetched < 700  # shards
    assert seen[-1][0] == len(keys)


def test_an_import_into_a_group_gives_it_parents() -> None:
    blocks, _, cid = published({"zarr.json": ARRAY, "c/0": b"0"})
    mapping = CASMapping(MemoryBlocks())
    import_unixfs(mapping, blocks, cid, path="/some/where/")
    assert b"group" in mapping["some/zarr.json"]
    assert b"group" in mapping["zarr.json"]
    assert "some/where/c/0" in mapping
    with pytest.raises(InvalidArgumentError, match="something at 'some/where'"):
        import_unixfs(mapping, blocks, cid, path="some/where")
    blocks, _, other = published({"zarr.json": ARRAY, "c/1": b"1"})
    import_unixfs(mapping, blocks, other, path="some/where", replace=True)
    assert sorted(mapping.list_keys("some/where")) == ["some/where/c/1", "some/where/zarr.json"]


def test_bytes_inside_a_cid_are_copied() -> None:
    blocks = MemoryBlocks()
    leaves = [(put(blocks, b"x" * 300_000), 300_000), (INLINE, 3)]
    top, nodes = build_file(leaves, SHA256)
    blocks.put_many(nodes)
    rows = folder(blocks, PBLink(INLINE, "0", 3), PBLink(top, "1", 300_003))
    cid = folder(blocks, document(blocks), PBLink(rows, "c", 1))
    mapping = CASMapping(MemoryBlocks())
    report = import_unixfs(mapping, blocks, cid)
    assert report.linked == 0
    assert mapping["c/0"] == b"abc"
    assert mapping["c/1"] == b"x" * 300_000 + b"abc"


def test_a_dataset_that_is_linked_is_read_where_it_was_left(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(4, 6)
    with Repository.open(tmp_path / "far", create=True) as far:
        with CASStore(far) as store:
            zarr.create_array(store, data=values, chunks=(2, 3))
            view = UnixfsView(far.blocks, store.flush())
        for cid, data in view.blocks():
            if data is not None:
                far.blocks.put(cid, data)
        far.blocks.flush()
        with Repository.open(tmp_path / "here", create=True) as repo:
            location = str(tmp_path / "far")
            report = link_unixfs(repo, location, far.blocks, view.cid, path="a", message="linked")
            assert report.linked == 4
            link_unixfs(repo, location, far.blocks, view.cid, path="b")
            assert [remote.location for remote in list_remotes(repo.refs)] == [location]
            assert [entry.commit.message for entry in repo.log()][1] == "linked"
            with pytest.raises(InvalidArgumentError):
                link_unixfs(repo, location, far.blocks, view.cid, path="b")
    for path in ("a", "b"):
        array = zarr.open_array(CASStore(tmp_path / "here"), path=path, mode="r")
        np.testing.assert_array_equal(array[:], values)


def test_a_lie_about_a_chunk_is_found_when_it_is_read() -> None:
    blocks = MemoryBlocks()
    rows = folder(blocks, PBLink(put(blocks, b"1234"), "0", 5))
    cid = folder(blocks, document(blocks), PBLink(rows, "c", 1))
    mapping = CASMapping(blocks)
    import_unixfs(mapping, blocks, cid)
    with pytest.raises(FormatError, match="has 4 bytes"):
        mapping["c/0"]


SHA3 = CidBytes(b"\x01\x55\x16\x20" + hashlib.sha3_256(b"").digest())
SHA512 = CidBytes(b"\x01\x55\x13\x40" + hashlib.sha512(b"").digest())


@pytest.mark.parametrize(
    ("link", "error", "message"),
    [
        (PBLink(SHA3, "0", 1), InvalidCIDError, "'c/0' cannot be imported.*0x16"),
        (PBLink(SHA512, "0", 1), InvalidCIDError, "'c/0' cannot be imported.*0x13"),
        (PBLink(cid_of(RAW, SHA256, b""), "0", 3 << 20), FormatError, "'c/0'.*in one block"),
        (PBLink(cid_of(DAG_CBOR, SHA256, b""), "0", 1), FormatError, "'c/0'.*codec 0x71"),
        (PBLink(cid_of(RAW, SHA256, b""), "..", 1), FormatError, "no name of a file"),
        (PBLink(cid_of(RAW, SHA256, b""), "a/b", 1), FormatError, "no name of a file"),
    ],
)
def test_links_that_cannot_be_are_refused(
    link: PBLink, error: type[CasZarrError], message: str
) -> None:
    blocks = MemoryBlocks()
    cid = folder(blocks, document(blocks), PBLink(folder(blocks, link), "c", 1))
    mapping = CASMapping(MemoryBlocks())
    with pytest.raises(error, match=message):
        import_unixfs(mapping, blocks, cid)
    assert list(mapping) == []


def test_nodes_that_are_no_files_are_refused() -> None:
    blocks = MemoryBlocks()
    symlink = put(blocks, dagpb.encode(PBNode(b"\x08\x04\x12\x01/", ())), DAG_PB)
    cid = folder(blocks, document(blocks), PBLink(symlink, "etc", 1))
    with pytest.raises(FormatError, match=r"'etc' .* symlink"):
        import_unixfs(CASMapping(MemoryBlocks()), blocks, cid)
    broken = put(blocks, b"\xff\xff", DAG_PB)
    cid = folder(blocks, document(blocks), PBLink(broken, "broken", 1))
    with pytest.raises(FormatError, match=r"'broken' .* cannot be imported"):
        import_unixfs(CASMapping(MemoryBlocks()), blocks, cid)


def test_a_directory_without_zarr_is_refused() -> None:
    blocks = MemoryBlocks()
    leaf = put(blocks, b"")
    with pytest.raises(NotFoundError, match="no zarr array or group"):
        import_unixfs(CASMapping(blocks), blocks, folder(blocks, PBLink(leaf, "a", 0)))
    with pytest.raises(NotFoundError, match="is no directory"):
        import_unixfs(CASMapping(blocks), blocks, leaf)


def test_folders_have_a_greatest_depth() -> None:
    blocks = MemoryBlocks()
    cid = folder(blocks, document(blocks))
    for _ in range(70):
        cid = folder(blocks, PBLink(cid, "d", 1))
    with pytest.raises(CasZarrError, match="64"):
        import_unixfs(CASMapping(blocks), blocks, cid)


def test_a_few_blocks_cannot_claim_billions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unixfsimport, "MAX_KEYS", 10_000)
    blocks = MemoryBlocks()
    cid = folder(blocks, document(blocks))
    for _ in range(8):
        cid = folder(blocks, *(PBLink(cid, str(i), 1) for i in range(100)))
    with pytest.raises(LimitError, match="10000 files"):
        import_unixfs(CASMapping(blocks), blocks, cid)


def test_a_few_blocks_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unixfsimport, "MAX_COPIED", 4 << 20)
    blocks = MemoryBlocks()
    large = ARRAY + b" " * (1 << 20)
    deep = folder(blocks, PBLink(put(blocks, large), "zarr.json", len(large)))
    cid = folder(blocks, *(PBLink(deep, f"a{i:02}", 1) for i in range(20)))
    with pytest.raises(LimitError, match="documents and files that are copied"):
        import_unixfs(CASMapping(blocks), blocks, cid)
    leaf = put(blocks, b"x" * (1 << 20))
    top, nodes = build_file([(INLINE, 3), *[(leaf, 1 << 20)] * 9], SHA256)
    blocks.put_many(nodes)
    cid = folder(blocks, document(blocks), PBLink(top, "c", 1))
    blocks.delete(leaf)  # it is refused before it is read
    with pytest.raises(LimitError, match="'c'"):
        import_unixfs(CASMapping(blocks), blocks, cid)


def test_a_file_that_is_too_deep_to_be_read_is_refused() -> None:
    blocks = MemoryBlocks()
    cid, nodes = build_file([(put(blocks, b"a"), 1), (put(blocks, b"b"), 1)], SHA256)
    blocks.put_many(nodes)
    for _ in range(40):
        below = blocks.get(cid)
        node = b"\x08\x02\x18\x02\x20\x02"  # of two bytes, all in the one below
        cid = put(blocks, dagpb.encode(PBNode(node, (PBLink(cid, "", len(below)),))), DAG_PB)
    cid = folder(blocks, document(blocks), PBLink(cid, "c", 2))
    with pytest.raises(FormatError, match=r"'c'.*deep"):
        import_unixfs(CASMapping(blocks), blocks, cid)


def test_a_leaf_of_which_the_directory_tells_no_size_is_looked_at() -> None:
    blocks = MemoryBlocks()
    values = {"0": b"zero", "1": b"", "2": b"two"}
    rows = folder(blocks, *(PBLink(put(blocks, data), name) for name, data in values.items()))
    cid = folder(blocks, document(blocks), PBLink(rows, "c"))
    mapping = CASMapping(blocks)
    report = import_unixfs(mapping, blocks, cid)
    assert {name: mapping[f"c/{name}"] for name in values} == values
    assert (report.linked, report.size) == (3, len(ARRAY) + 7)


def test_parents_have_the_format_of_what_they_hold() -> None:
    blocks = MemoryBlocks()
    array = folder(blocks, document(blocks))
    cid = folder(blocks, PBLink(array, "a", 1))  # no document of its own
    mapping = CASMapping(MemoryBlocks())
    import_unixfs(mapping, blocks, cid, path="some/where")
    assert sorted(mapping) == ["some/where/a/zarr.json", "some/zarr.json", "zarr.json"]


def test_an_import_that_fails_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    blocks = MemoryBlocks()
    nothing = folder(blocks)
    with Repository.open(tmp_path / "here", create=True) as repo:
        with pytest.raises(NotFoundError, match="no zarr array or group"):
            link_unixfs(repo, f"ipfs://{format_cid(nothing)}", blocks, nothing)
        assert list_remotes(repo.refs) == []
        assert repo.refs.branches() == []
        with pytest.raises(InvalidArgumentError, match="ipfs://"):
            link_published(repo, str(tmp_path / "here"))


# -- directories ----------------------------------------------------------------------------------


def test_a_path_is_followed_or_a_clear_error() -> None:
    blocks, _, cid = published(KEYS)
    assert resolve_path(blocks, cid).kind == "directory"
    assert resolve_path(blocks, cid, "/c/5/").size == len(KEYS["c/5"])
    assert resolve_path(blocks, cid, "long").size == len(KEYS["long"])
    for path in ("nothing", "c/nothing/x", "c/5/x"):
        with pytest.raises(NotFoundError):
            resolve_path(blocks, cid, path)
    for path in ("c/../c", "c//5", "./c", "/".join("a" * 65)):
        with pytest.raises(InvalidKeyError):
            resolve_path(blocks, cid, path)
    with pytest.raises(FormatError, match="codec 0x71"):
        resolve_path(blocks, cid_of(DAG_CBOR, SHA256, b""), "")


def test_a_name_that_stands_elsewhere_than_its_hash_is_refused() -> None:
    blocks = MemoryBlocks()
    names = [f"{i}" for i in range(6000)]
    leaf = put(blocks, b"x")
    for block in directory_blocks(names, leaf * 6000, [1] * 6000, BLAKE3):
        blocks.put(block.cid, block.data)
    node = dagpb.decode(block.data)
    first, second = [link for link in node.links if link.name and len(link.name) == 2][:2]
    swapped = {first.name: second.cid, second.name: first.cid}
    links = tuple(
        PBLink(swapped.get(link.name, link.cid), link.name, link.tsize) for link in node.links
    )
    bad = put(blocks, dagpb.encode(PBNode(node.data, links)), DAG_PB)
    with pytest.raises(FormatError, match="hash puts it elsewhere"):
        list(list_directory(blocks, bad))
    assert sorted(name for name, _, _ in list_directory(blocks, block.cid)) == sorted(names)


def test_shards_that_hold_nothing_but_each_other_are_refused() -> None:
    blocks = MemoryBlocks()
    data = b"\x08\x05\x12\x01\x01\x28\x22\x30\x80\x02"
    cid = put(blocks, dagpb.encode(PBNode(data[:2] + data[5:], ())), DAG_PB)
    for _ in range(10):
        cid = put(blocks, dagpb.encode(PBNode(data, (PBLink(cid, "00", 1),))), DAG_PB)
    with pytest.raises(FormatError, match="deeper than hashes"):
        list(list_directory(blocks, cid))
