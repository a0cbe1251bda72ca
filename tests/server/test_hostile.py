"""What is missing, damaged, endless or cut off is never taken for data, nor holds a thread."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Served, broken_parent, make

from cas_zarr import Repository
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import DAG_CBOR, DAG_PB, RAW, SHA256, CidBytes, cid_of, format_cid
from cas_zarr.codecs.dagpb import PBLink, PBNode, encode
from cas_zarr.codecs.murmur3 import MURMUR3_X64_64
from cas_zarr.mapping import CASMapping
from cas_zarr.server.content import Versions
from cas_zarr.server.dags import entity_blocks
from cas_zarr.server.running import serve_in_thread


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def file_node(children: list[tuple[CidBytes, int]]) -> bytes:
    content = b"\x08\x02\x18" + varint(sum(size for _, size in children))
    content += b"".join(b"\x20" + varint(size) for _, size in children)
    return encode(PBNode(content, tuple(PBLink(cid, "", size) for cid, size in children)))


@pytest.fixture
def partial(tmp_path: Path) -> Iterator[Served]:
    """Give a clone of one array, which is served without what it lacks."""
    _, found = make(tmp_path / "whole.cas")
    copy = Repository.clone(tmp_path / "whole.cas", tmp_path / "part.cas", paths="large")
    with copy, serve_in_thread(copy) as server:
        yield Served(server.url, copy, **found)


# -- what is not here ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["/zarr/main", "/ipfs/{root}", "/ipfs/{tree}"])
def test_a_chunk_that_is_missing_is_no_chunk_that_was_never_written(
    partial: Served, served: Served, way: str
) -> None:
    for cid in (partial.tree, partial.page):
        partial.repo.blocks.put(cid, served.repo.blocks.get(cid))
    way = way.format(root=partial.root, tree=format_cid(partial.tree))
    key = "a%20%3Cb%3E.bin" if "/ipfs/bafyb" in way else "t2m/c/0/0"
    found = partial.get(f"{way}/{key}")
    assert (found.status, b"not here" in found.body) == (502, True)
    assert partial.get(f"{way}/{key}", "HEAD").status in (200, 502)  # whose size is known
    # whoever asks for blocks is told by the specification that there is none
    assert partial.get(f"{way}/{key}?format=raw").status == (404 if "ipfs" in way else 502)
    assert partial.get(f"{way}/{key.replace('0', '9')}x").status == 404


def test_a_dataset_that_is_gone_has_not_lost_its_chunks(served: Served) -> None:
    assert served.get("/zarr/none/zarr.json").status == 404
    assert served.get("/zarr/none/t2m/c/0/0").status == 410
    gone = format_cid(cid_of(DAG_CBOR, SHA256, b"gone"))
    assert served.get(f"/ipfs/{gone}").status == 404
    assert served.get(f"/ipfs/{gone}/t2m/c/0/0").status == 502


def test_a_value_that_cannot_be_read_is_no_missing_one(served: Served) -> None:
    leaf = cid_of(RAW, SHA256, b"leaf")
    lying = file_node([(leaf, 3 << 20)])  # more than a block can have
    cid = cid_of(DAG_PB, SHA256, lying)
    served.repo.blocks.put_many([(leaf, b"leaf"), (cid, lying)])
    served.repo.blocks.flush()
    assert served.get(f"/ipfs/{format_cid(cid)}").status == 500


# -- what has no end -------------------------------------------------------------------------------


def endless_file() -> tuple[MemoryBlocks, CidBytes]:
    """Return some blocks that claim a file with more leaves than anyone can walk."""
    blocks = Counted()
    cid, size = cid_of(RAW, SHA256, b"leaf"), 4
    blocks.put(cid, b"leaf")
    for _ in range(12):
        data = file_node([(cid, size)] * 16)
        cid, size = cid_of(DAG_PB, SHA256, data), 16 * size
        blocks.put(cid, data)
    return blocks, cid


def endless_directory() -> tuple[MemoryBlocks, CidBytes]:
    """Return some shards, each of which has the next one in every place."""
    blocks = Counted()
    content = b"\x08\x05\x28" + varint(MURMUR3_X64_64) + b"\x30\x80\x02"
    data = encode(PBNode(content, ()))
    cid = cid_of(DAG_PB, SHA256, data)
    blocks.put(cid, data)
    for _ in range(7):
        field = b"\x12\x20" + b"\xff" * 32
        links = tuple(PBLink(cid, f"{place:02X}", 1) for place in range(256))
        data = encode(PBNode(content[:2] + field + content[2:], links))
        cid = cid_of(DAG_PB, SHA256, data)
        blocks.put(cid, data)
    return blocks, cid


class Counted(MemoryBlocks):
    """Gives up where a walk reads more than there is."""

    reads = 0

    def _read(self, cid: CidBytes) -> bytes | None:
        self.reads += 1
        assert self.reads < 1000, "the walk does not end"
        return super()._read(cid)


@pytest.mark.parametrize("made", [endless_file, endless_directory])
def test_an_entity_is_walked_once(made: Callable[[], tuple[MemoryBlocks, CidBytes]]) -> None:
    blocks, cid = made()
    found = [one for one, _ in entity_blocks(blocks, cid)]
    assert found[0] == cid
    assert sorted(found) == sorted(blocks.list())


def test_an_entity_with_its_duplicates() -> None:
    data = file_node([(cid_of(RAW, SHA256, b"leaf"), 4)] * 3)
    blocks = MemoryBlocks()
    blocks.put(cid_of(RAW, SHA256, b"leaf"), b"leaf")
    blocks.put(cid_of(DAG_PB, SHA256, data), data)
    found = list(entity_blocks(blocks, cid_of(DAG_PB, SHA256, data), dups=True))
    assert [block for _, block in found] == [data, b"leaf", b"leaf", b"leaf"]


# -- what was cut off ------------------------------------------------------------------------------


def test_a_cut_is_seen_without_chunks_too(served: Served) -> None:
    cid = broken_parent(served.repo)
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as old:
        old.sendall(f"GET /ipfs/{cid}?format=car HTTP/1.0\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            b"".join(iter(lambda: old.recv(1 << 20), b""))


# -- one for another -------------------------------------------------------------------------------


def test_a_dataset_that_is_slow_to_read_holds_up_no_other() -> None:
    waiting, go_on = threading.Event(), threading.Event()

    class Slow(MemoryBlocks):
        """Waits where the long attributes of a group are read."""

        slow: CidBytes | None = None

        def _read(self, cid: CidBytes) -> bytes | None:
            if cid == self.slow:
                waiting.set()
                assert go_on.wait(20)
            return super()._read(cid)

    blocks, roots = Slow(), []
    for text in ("x" * (1 << 17), "y" * (1 << 17)):
        mapping = CASMapping(blocks)
        mapping["zarr.json"] = json.dumps({"node_type": "group", "x": text}).encode()
        roots.append(mapping.flush())
        blocks.slow = blocks.slow or mapping.cid_of("zarr.json")
    versions = Versions("blake3")
    thread = threading.Thread(target=versions.key, args=(blocks, roots[0], "zarr.json"))
    thread.start()
    try:
        assert waiting.wait(20)
        found: list[object] = []
        other = threading.Thread(
            target=lambda: found.append(versions.key(blocks, roots[1], "zarr.json"))
        )
        other.start()
        other.join(10)
        assert found
    finally:
        go_on.set()
        thread.join()
        other.join()


def test_only_what_is_here_is_asked_for_where_a_client_wants_that(tmp_path: Path) -> None:
    _, found = make(tmp_path / "whole.cas")
    copy = Repository.clone(tmp_path / "whole.cas", tmp_path / "part.cas", paths="large")
    with copy, serve_in_thread(copy, fetch=True) as server:
        client = Served(server.url, copy, **found)
        path = f"/ipfs/{format_cid(found['chunk'])}?format=raw"
        for _ in range(2):
            assert client.get(path, "HEAD", cache_control="only-if-cached").status == 412
        assert client.get(path).status == 200
        assert client.get(path, cache_control="only-if-cached").status == 200


def test_metadata_of_any_depth_are_composed_or_left_alone() -> None:
    limit = sys.getrecursionlimit()
    for depth in (*range(limit - 150, limit + 10), 100_000):
        blocks = MemoryBlocks()
        mapping = CASMapping(blocks)
        stored = b'{"node_type":"group","zarr_format":3}'
        mapping["zarr.json"] = stored
        mapping["g/zarr.json"] = stored[:-1] + b',"a":' + b"[" * depth + b"]" * depth + b"}"
        found = Versions("blake3").key(blocks, mapping.flush(), "zarr.json")
        assert found is not None
        assert found.data is not None
        assert found.data == stored or b"consolidated_metadata" in bytes(found.data)
