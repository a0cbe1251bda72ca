"""References: what they say is read and verified where it lies, and nothing else is served."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cas_zarr.blocks import disk
from cas_zarr.blocks.base import MAX_BLOCK_SIZE
from cas_zarr.blocks.references import ReferencedBlocks, References
from cas_zarr.blocks.referencetable import Place, Table
from cas_zarr.blocks.referring import ReferringBlocks
from cas_zarr.cid import BLAKE3, RAW, SHA256, CidBytes, cid_of
from cas_zarr.codecs import dagjson
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    FormatError,
    ReadOnlyError,
    RemoteError,
    StorageError,
)
from cas_zarr.testing import BlockStoreSuite, CollectableBlocksSuite


class TestReferringBlocks(BlockStoreSuite):
    def make_store(self, folder: Path) -> ReferringBlocks:
        return ReferringBlocks(folder / "packs", folder / "references", create=True)

    def reopen(self, folder: Path, *, read_only: bool = False) -> ReferringBlocks:
        return ReferringBlocks(folder / "packs", folder / "references", read_only=read_only)


class TestCollectableReferringBlocks(CollectableBlocksSuite):
    def make_store(self, folder: Path) -> ReferringBlocks:
        return ReferringBlocks(folder / "packs", folder / "references", create=True)


def spread(path: Path, count: int = 300, seed: int = 0) -> tuple[Table, dict[CidBytes, bytes]]:
    """Write a file of pieces of many sizes; return references to them, and the pieces."""
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.randrange(1, 300)) for _ in range(count - 1)]
    pieces.append(rng.randbytes(200_000))
    blocks, rows, at = {}, [], 0
    for row, piece in enumerate(pieces):
        cid = cid_of(RAW, (BLAKE3, SHA256)[row % 2], piece)
        rows.append((cid, path.name, at, len(piece)))
        blocks[cid] = piece
        at += len(piece)
    path.write_bytes(b"".join(pieces))
    return Table.of(str(path.parent), rows), blocks


def opened(tmp_path: Path) -> ReferringBlocks:
    return ReferringBlocks(tmp_path / "packs", tmp_path / "references", create=True)


def test_what_is_referred_to_is_read_and_held(tmp_path: Path) -> None:
    table, blocks = spread(tmp_path / "data")
    early = opened(tmp_path)  # learns of references that are written later
    other = cid_of(RAW, BLAKE3, b"other")
    assert not early.has(next(iter(blocks)))
    early.references.add(table)
    early.put(other, b"other")
    for store in (early, ReferencedBlocks(References(tmp_path / "references"))):
        assert list(store.get_many(list(blocks))) == list(blocks.values())
        assert all(store.has_many(list(blocks)))
        assert {cid: store.size(cid) for cid in blocks} == {c: len(b) for c, b in blocks.items()}
        for cid, data in blocks.items():
            out = bytearray(len(data))
            store.read_into(cid, memoryview(out))
            assert out == data
    assert list(early.has_many([other, *blocks, cid_of(RAW, BLAKE3, b"none")])) == [
        *([True] * (len(blocks) + 1)),
        False,
    ]
    keys = np.frombuffer(b"".join(cid[2:] for cid in blocks), np.uint8).reshape(-1, 34)
    assert early.has_array(keys).all()
    assert set(ReferencedBlocks(early.references).list()) == set(blocks)
    assert list(early.list()) == [other]  # what can be collected


def test_references_alone_are_for_reading(tmp_path: Path) -> None:
    store = ReferencedBlocks(References(tmp_path))
    with pytest.raises(ReadOnlyError):
        store.put(cid_of(RAW, BLAKE3, b"x"), b"x")
    with pytest.raises(BlockNotFoundError, match="is not in the references in"):
        store.get(cid_of(RAW, BLAKE3, b"x"))


def test_to_put_what_is_referred_to_copies_it(tmp_path: Path) -> None:
    table, blocks = spread(tmp_path / "data")
    store = opened(tmp_path)
    store.references.add(table)
    store.put_many(blocks.items())
    store.flush()
    (tmp_path / "data").unlink()
    assert list(store.get_many(list(blocks))) == list(blocks.values())


def test_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    table, blocks = spread(tmp_path / "data")
    store = opened(tmp_path)
    store.references.add(table)
    data = bytearray((tmp_path / "data").read_bytes())
    for at in (0, len(data) - 1):
        data[at] ^= 1
    (tmp_path / "data").write_bytes(data)
    cids = list(blocks)
    for cid in (cids[0], cids[-1]):
        with pytest.raises(CorruptBlockError, match=r"of .*/data, which has changed since"):
            store.get(cid)
        with pytest.raises(CorruptBlockError, match="has changed since"):
            store.read_into(cid, memoryview(bytearray(len(blocks[cid]))))
        with pytest.raises(CorruptBlockError):
            store.get_many(cids)
        assert store.get_held([cid]) == {}
    assert list(store.get_many(cids[1:-1])) == list(blocks.values())[1:-1]


def test_of_two_places_the_sound_one_is_read(tmp_path: Path) -> None:
    first, blocks = spread(tmp_path / "first")
    second, same = spread(tmp_path / "second")
    assert same == blocks
    store = opened(tmp_path)
    store.references.add(first)
    store.references.add(second)
    for broken in (tmp_path / "first", tmp_path / "second"):
        kept = broken.read_bytes()
        broken.write_bytes(bytes(len(kept)))
        assert list(store.get_many(list(blocks))) == list(blocks.values())
        broken.unlink()
        assert list(store.get_many(list(blocks))) == list(blocks.values())
        broken.write_bytes(kept)


@pytest.mark.parametrize("how", ["gone", "cut", "folder", "pipe"])
def test_a_source_that_is_gone_is_named(tmp_path: Path, how: str) -> None:
    table, blocks = spread(tmp_path / "data")
    store = opened(tmp_path)
    store.references.add(table)
    (tmp_path / "data").unlink()
    if how == "cut":
        (tmp_path / "data").write_bytes(b"")
    elif how == "folder":
        (tmp_path / "data").mkdir()
    elif how == "pipe":  # to open one would wait for a writer
        os.mkfifo(tmp_path / "data")
    cid = next(iter(blocks))
    assert not store.has(cid)
    assert not any(store.has_many(list(blocks)))
    error = CorruptBlockError if how == "cut" else BlockNotFoundError
    with pytest.raises(error, match=rf"bytes 0 to \d+ of {tmp_path}/data"):
        store.get(cid)
    (report,) = store.references.reports()
    assert report.missing == (str(tmp_path / "data"),)
    assert (report.blocks, report.location) == (len(blocks), str(tmp_path))


def test_sources_can_be_looked_for_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "older").mkdir()
    table, blocks = spread(tmp_path / "old" / "data")
    other, others = spread(tmp_path / "older" / "data", seed=1)
    store = opened(tmp_path)
    for one in (table, other):
        store.references.add(one)
    (tmp_path / "old").rename(tmp_path / "new")
    assert store.references.repoint(str(tmp_path / "old"), str(tmp_path / "new")) == len(blocks)
    assert list(store.get_many(list(blocks))) == list(blocks.values())
    assert list(store.get_many(list(others))) == list(others.values())  # older/ is not below old/
    (tmp_path / "new" / "data").rename(tmp_path / "alone")
    moved = store.references.repoint(str(tmp_path / "new" / "data"), str(tmp_path / "alone"))
    assert moved == len(blocks)
    again = opened(tmp_path)
    assert list(again.get_many(list(blocks))) == list(blocks.values())
    assert again.references.repoint(str(tmp_path / "nowhere"), str(tmp_path)) == 0


def test_a_source_can_move_to_the_top_of_a_file_system_and_from_it() -> None:
    for names in (("x/y",), ("x/y", "")):
        rows = [(cid_of(RAW, BLAKE3, name.encode()), name, 0, 1) for name in names]
        table = Table.of("/data", rows)
        top = table.moved("/data/", "/")
        assert top is not None
        assert {top.place(row).source for row in range(len(rows))} <= {"/x/y", "/"}
        back = top.moved("/", "/other")
        assert back is not None
        assert {back.place(row).source for row in range(len(rows))} <= {"/other/x/y", "/other"}


def test_rows_that_are_not_marked_are_dropped(tmp_path: Path) -> None:
    table, blocks = spread(tmp_path / "data")
    references = References(tmp_path / "references")
    name = references.add(table)
    mask = np.arange(len(table)) % 3 == 0
    assert not references.set_aside({name: mask}, before=0)  # younger
    assert references.set_aside({name: mask}, before=1 << 62)
    assert references.drop({name: mask}) == (~mask).sum()
    assert (references.has_array(table.rows["key"]) == mask).all()
    store = ReferencedBlocks(references)
    for cid in store.list():
        data = next(data for one, data in blocks.items() if one[2:] == cid[2:])
        assert store.get(cid) == data
    (left,) = references.tables()
    none = {left: np.zeros(int(mask.sum()), bool)}
    assert references.set_aside(none, before=1 << 62)
    references.drop(none)
    assert os.listdir(references.path) == []


def test_what_is_marked_while_it_is_set_aside_comes_back(tmp_path: Path) -> None:
    table, _ = spread(tmp_path / "data")
    references = References(tmp_path / "references")
    marks = {references.add(table): np.arange(len(table)) % 3 == 0}
    keys = table.rows["key"]
    (mask,) = marks.values()
    early = mask.copy()
    assert references.set_aside(marks, before=1 << 62)
    assert (References(references.path).has_array(keys) == mask).all()  # nobody relies on the rest
    references.restore()
    assert references.has_array(keys).all()
    assert references.set_aside(marks, before=1 << 62)
    mask[1] = True
    assert references.drop(marks) == (~mask).sum()
    assert (references.has_array(keys) == mask).all()
    assert mask.sum() == early.sum() + 1


def test_what_was_left_by_a_kill_comes_back_or_goes(tmp_path: Path) -> None:
    table, _ = spread(tmp_path / "data")
    killed = References(tmp_path / "references")
    name = killed.add(table)
    mask = np.zeros(len(table), bool)
    assert killed.set_aside({name: mask}, before=1 << 62)
    old, new = (tmp_path / "references" / f"{digit * 32}.refs.part" for digit in "ab")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    later = References(killed.path)
    assert not later.has_array(table.rows["key"]).any()
    assert not later.set_aside({}, before=0)
    assert later.has_array(table.rows["key"]).all()
    assert sorted(os.listdir(later.path)) == sorted((name, new.name))  # one may be written now


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    table, _ = spread(tmp_path / "data")
    again = Table.from_bytes(table.to_bytes())
    assert (again.location, again.names) == (table.location, table.names)
    assert (again.rows == table.rows).all()
    empty = Table.from_bytes(Table.of("", []).to_bytes())
    assert len(empty) == 0
    assert empty.find(bytes(34)) is None
    assert empty.find_many(np.zeros((3, 34), np.uint8)).tolist() == [-1] * 3


def test_what_has_the_same_digest_under_two_functions_is_told_apart() -> None:
    digest = bytes(range(32))
    cids = [CidBytes(bytes((1, RAW, code, 32)) + digest) for code in (0x1E, 0x12)]
    table = Table.of("", [(cid, f"/{n}", 0, n + 1) for n, cid in enumerate(cids)])
    keys = np.frombuffer(b"".join(cid[2:] for cid in cids), np.uint8).reshape(-1, 34)
    rows = [table.find(cid[2:]) for cid in cids]
    assert table.find_many(keys).tolist() == rows
    assert [table.place(row) for row in rows if row is not None] == [
        Place("/0", 0, 1),
        Place("/1", 0, 2),
    ]


def test_no_flipped_bit_in_a_file_of_references_goes_unseen(tmp_path: Path) -> None:
    table, blocks = spread(tmp_path / "data", count=8)
    whole = table.to_bytes()
    rng = random.Random(0)
    for at in [0, 15, 16, 23, *(rng.randrange(len(whole)) for _ in range(60)), len(whole) - 1]:
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        with pytest.raises(FormatError):
            Table.from_bytes(bytes(data))
    for size in (0, 1, 16, 24, 60, len(whole) - 1):
        with pytest.raises(FormatError):
            Table.from_bytes(whole[:size])
    store = opened(tmp_path)
    name = store.references.add(table)
    good, others = spread(tmp_path / "other", seed=2)
    store.references.add(good)
    path = tmp_path / "references" / name
    path.write_bytes(whole[:-1] + b"\0")
    again = opened(tmp_path)
    assert list(again.get_many(list(others))) == list(others.values())
    with pytest.raises(BlockNotFoundError, match=f"{name} is damaged"):
        again.get(next(iter(blocks)))


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    table, blocks = spread(tmp_path / "data", count=8)
    store = opened(tmp_path)
    file = tmp_path / "references" / ("0" * 32 + ".refs")
    file.mkdir(parents=True)
    with pytest.raises(BlockNotFoundError, match=r"is damaged: .*directory"):
        store.get(next(iter(blocks)))
    file.rmdir()
    file.write_bytes(table.to_bytes())
    assert list(store.get_many(list(blocks))) == list(blocks.values())


def sealed(header: dict[str, object], rows: bytes) -> bytes:
    text = dagjson.encode(header)  # type: ignore[arg-type]
    data = b"cas-zarr/refs/1\n" + len(text).to_bytes(8, "little") + text + rows
    return data + BLAKE3.digest(data)


def test_a_hostile_table_is_refused() -> None:
    good = {
        "type": "cas-zarr/references",
        "version": 1,
        "location": "",
        "names": ["/a"],
        "count": 1,
    }

    def row(source: int = 0, offset: int = 0, size: int = 1) -> bytes:
        numbers = ((source, 4), (offset, 8), (size, 4))
        return bytes(34) + b"".join(n.to_bytes(width, "little") for n, width in numbers)

    assert len(Table.from_bytes(sealed(good, row()))) == 1
    for header, rows in [
        (good, row(source=1)),
        (good, row(offset=1 << 63)),
        (good, row(size=MAX_BLOCK_SIZE + 1)),
        (good, row() + row()),
        (good | {"count": 1 << 60}, row()),
        (good | {"count": -1}, b""),
        (good | {"version": 2}, row()),
        (good | {"type": "cas-zarr/remote"}, row()),
        (good | {"names": "/a"}, row()),
        (good | {"location": None}, row()),
        (good | {"count": 2}, bytes([255] * 34) + row()[34:] + row()),
    ]:
        with pytest.raises(FormatError):
            Table.from_bytes(sealed(header, rows))


def test_a_table_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, _ = spread(tmp_path / "data")
    references = References(tmp_path / "references")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "fsync", fail)
    with pytest.raises(StorageError, match="free some space"):
        references.add(table)
    monkeypatch.undo()
    assert references.tables() == {}
    assert os.listdir(tmp_path / "references") == []


# -- a server -----------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves ranges of one file."""

    daemon_threads = True
    data = b""
    etag = '"one"'

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client may leave at any time."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        data = self.server.data
        if self.path.partition("?")[0] != "/data" or not data:
            self.send_error(404)
            return
        first, last = (int(number) for number in self.headers["Range"][6:].split("-"))
        part = data[first : last + 1]
        if self.headers.get("If-Range") not in (None, self.server.etag):
            part, first = data, -1
        self.send_response(200 if first < 0 else 206)
        if first >= 0:
            total = len(data)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{total}")
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_ranges_of_a_file_on_a_server(tmp_path: Path, server: Server) -> None:
    table, blocks = spread(tmp_path / "data", count=2000)
    server.data = (tmp_path / "data").read_bytes()
    assert len(server.data) > 1 << 18  # more than the first request brings
    store = opened(tmp_path)
    store.references.add(Table(server.url, table.names, table.rows))
    assert all(store.has_many(list(blocks)))  # it is believed
    cids = list(blocks)
    assert store.get(cids[0]) == blocks[cids[0]]
    assert store.get(cids[-1]) == blocks[cids[-1]]
    server.etag = '"two"'  # the same bytes, stored anew
    assert store.get(cids[-1]) == blocks[cids[-1]]
    server.etag, server.data = '"three"', server.data[:-1] + bytes([server.data[-1] ^ 1])
    with pytest.raises(CorruptBlockError, match=f"{server.url}/data, which has changed"):
        store.get(cids[-1])
    server.data = b""
    store.close()
    again = opened(tmp_path)
    with pytest.raises(RemoteError, match="404"):
        again.get(cids[0])


def test_threads_read_on_when_a_file_was_stored_anew(tmp_path: Path, server: Server) -> None:
    table, blocks = spread(tmp_path / "data", count=4000)
    server.data = (tmp_path / "data").read_bytes()
    store = opened(tmp_path)
    store.references.add(Table(server.url, table.names, table.rows))
    cids = list(blocks)[2000:2100]  # behind what the first request brings
    for number in range(10):
        server.etag = f'"{number}"'
        assert list(store.get_many(cids)) == [blocks[cid] for cid in cids]
    store.close()


def test_many_files_of_a_server_are_read_over_one_connection(
    tmp_path: Path, server: Server
) -> None:
    server.data = bytes(range(40))
    cids = [cid_of(RAW, BLAKE3, bytes((number,))) for number in range(40)]
    references = References(tmp_path / "references")
    rows = [(cid, f"data?{number}", number, 1) for number, cid in enumerate(cids)]
    references.add(Table.of(server.url, rows))
    store = ReferencedBlocks(references)
    before = threading.active_count()
    for number, cid in [*enumerate(cids)] * 2:
        assert store.get(cid) == bytes((number,))
    assert threading.active_count() == before + 1  # the server has one for each connection
    assert len(references._web) < len(cids)  # the begin of each file is kept in memory
    references.close()
