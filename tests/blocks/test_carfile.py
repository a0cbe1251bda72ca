"""CAR files as places of blocks: on the disk, and on a server with ranges."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cas_zarr.blocks import carfile, carlookup, carsource
from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.carfile import CarBlocks
from cas_zarr.blocks.carlookup import WindowedIndex
from cas_zarr.blocks.carsource import FIRST
from cas_zarr.blocks.http import HttpClient
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_PB, RAW, SHA256, BytesLike, CidBytes, cid_of
from cas_zarr.codecs.car import CarReader, CarWriter, encode_wrapper
from cas_zarr.codecs.carindex import encode_index
from cas_zarr.codecs.carnote import CarNote
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    FormatError,
    ReadOnlyError,
    RemoteError,
    StorageError,
)
from cas_zarr.testing.blocks import BlockStoreSuite, sample_blocks


def write_car(
    path: Path,
    blocks: Mapping[CidBytes, bytes],
    *,
    version: int = 2,
    index: bool = True,
    roots: tuple[CidBytes, ...] = (),
) -> Path:
    with path.open("wb") as file:
        writer = CarWriter(file, roots, version=version, index=index)
        for cid, data in blocks.items():
            writer.put(cid, data)
        writer.finish()
    return path


# -- a server -----------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves one file, well or badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = b""
        self.etag = '"one"'
        self.ranges = True
        self.cut = False
        self.conditions = True
        self.whole: bytes | None = None  # what is given where no range is asked for
        self.chunked = False
        self.said = ""  # in place of a content-range
        self.pause = 0.0  # seconds between bytes
        self.asked: list[str | None] = []

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client may leave at any time."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/x.car"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        data, status = server.data, 200
        if wanted is None and server.whole is not None:
            data = server.whole
        known = not server.conditions or self.headers.get("If-Range") in (None, server.etag)
        if wanted is not None and server.ranges and known:
            first, last = (int(number) for number in wanted[6:].split("-"))
            data, status = server.data[first : last + 1], 206
        self.send_response(status)
        if status == 206:
            end = first + len(data) - 1
            said = server.said or f"bytes {first}-{end}/{len(server.data)}"
            self.send_header("Content-Range", said)
        self.send_header("ETag", server.etag)
        if server.chunked and status == 200:
            self.send_header("Transfer-Encoding", "chunked")
            data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if server.cut and first:
            self.wfile.write(data[:1])
            self.close_connection = True
            return
        if server.pause:
            with contextlib.suppress(OSError):  # the client has had enough
                for at in range(len(data)):
                    self.wfile.write(data[at : at + 1])
                    time.sleep(server.pause)
            return
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with _serving() as server:
        yield server


@contextmanager
def _serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- the suite ----------------------------------------------------------------------------------


class Rewritten(BlockStore):
    """Writes a CAR of all blocks that were put, and reads it through `CarBlocks`."""

    def __init__(self, path: Path, *, version: int, index: bool) -> None:
        self._path = path
        self._held: dict[CidBytes, bytes] = {}
        self._options = {"version": version, "index": index}
        self._lock = threading.RLock()
        self._car: CarBlocks | None = None

    @property
    def location(self) -> str:
        return str(self._path)

    def _open(self) -> CarBlocks:
        with self._lock:
            if self._car is None:
                write_car(self._path, self._held, **self._options)  # type: ignore[arg-type]
                self._car = CarBlocks(self._path)
            return self._car

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        with self._lock:
            if not any(cid[-34:] == held[-34:] for held in self._held):
                self._held[cid] = bytes(data)
                self._forget()

    def _delete(self, cid: CidBytes) -> None:
        with self._lock:
            for held in [held for held in self._held if held[-34:] == cid[-34:]]:
                del self._held[held]
            self._forget()

    def _forget(self) -> None:
        if self._car is not None:
            self._car.close()
        self._car = None

    def _read(self, cid: CidBytes) -> bytes | None:
        with self._lock:
            return self._open()._read(cid)

    def _has(self, cid: CidBytes) -> bool:
        with self._lock:
            return self._open()._has(cid)

    def _size(self, cid: CidBytes) -> int | None:
        with self._lock:
            return self._open()._size(cid)

    def get_many(self, cids):  # type: ignore[no-untyped-def]
        with self._lock:
            return self._open().get_many(cids)

    def has_many(self, cids):  # type: ignore[no-untyped-def]
        with self._lock:
            return self._open().has_many(cids)

    def list(self) -> Iterator[CidBytes]:
        with self._lock:
            return iter(sorted(self._open().list()))

    def close(self) -> None:
        with self._lock:
            self._forget()


class TestWithAnIndex(BlockStoreSuite):
    def make_store(self, folder: Path) -> BlockStore:
        return Rewritten(folder / "x.car", version=2, index=True)


class TestWithoutAnIndex(BlockStoreSuite):
    def make_store(self, folder: Path) -> BlockStore:
        return Rewritten(folder / "x.car", version=1, index=False)


# -- local files --------------------------------------------------------------------------------


BLOCKS = (
    sample_blocks(300)
    | sample_blocks(4, 1, largest=400_000)
    | sample_blocks(30, 2, function=SHA256)
    | {cid_of(codec, BLAKE3, bytes([codec])): bytes([codec]) for codec in (DAG_PB, DAG_CBOR)}
)


@pytest.mark.parametrize(("version", "index"), [(1, False), (2, False), (2, True)])
def test_a_file_is_read_in_place(tmp_path: Path, version: int, index: bool) -> None:
    roots = tuple(list(BLOCKS)[:2])
    path = write_car(tmp_path / "x.car", BLOCKS, version=version, index=index, roots=roots)
    with CarBlocks(path) as car:
        assert car.roots == roots
        assert car.version == version
        assert len(car) == len(BLOCKS)
        assert car.file_size == path.stat().st_size
        assert list(car.list()) == list(BLOCKS)
        cids = list(BLOCKS)
        random.Random(1).shuffle(cids)
        assert list(car.get_many(cids)) == [BLOCKS[cid] for cid in cids]
        assert all(car.size(cid) == len(data) for cid, data in BLOCKS.items())
        with pytest.raises(ReadOnlyError):
            car.put(cids[0], BLOCKS[cids[0]])


def test_a_cid_of_version_0_and_an_identity_are_met(tmp_path: Path) -> None:
    data = b"\x0a\x00"
    newer = cid_of(DAG_PB, SHA256, data)
    older, inline = CidBytes(newer[2:]), CidBytes(b"\x01\x55\x00\x02hi")
    for version in (1, 2):
        path = write_car(
            tmp_path / "x.car", {older: data, inline: b"hi"}, version=version, roots=(older,)
        )
        with CarBlocks(path) as car:
            assert car.roots == (newer,)
            assert car.get(newer) == car.get(older) == data
            assert list(car.list()) == [newer]


def lie(path: Path, change: object) -> None:
    """Write another index into a CARv2."""
    with CarReader(path) as car:
        header, groups = car.header, car.index()
    assert groups is not None
    assert header.data_size is not None
    payload = path.read_bytes()[: header.index_offset]
    path.write_bytes(payload + encode_index([change(*group) for group in groups]))  # type: ignore[operator]


def test_an_index_that_leads_elsewhere_is_not_believed(tmp_path: Path) -> None:
    path = write_car(tmp_path / "x.car", BLOCKS)
    lie(path, lambda code, digests, offsets: (code, digests, np.roll(offsets, 1)))
    for read in ("get", "size", "many"):
        with CarBlocks(path) as car:
            for cid, data in BLOCKS.items():
                if read == "get":
                    assert car.get(cid) == data
                elif read == "size":
                    assert car.size(cid) == len(data)
            if read == "many":
                assert list(car.get_many(list(BLOCKS))) == list(BLOCKS.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda code, digests, offsets: (code, digests, np.roll(offsets, 1)),
        lambda code, digests, offsets: (code, digests[::2], offsets[::2]),
        lambda code, digests, offsets: (code, digests[:0], offsets[:0]),
    ],
)
def test_a_list_is_whole_whatever_the_index_says(tmp_path: Path, change: object) -> None:
    twice = dict(list(BLOCKS.items())[:9])
    path = tmp_path / "x.car"
    with path.open("wb") as file:
        writer = CarWriter(file)
        for cid, data in (*twice.items(), *BLOCKS.items()):
            writer.put(cid, data)
        writer.finish()
    with CarBlocks(path) as car:
        assert sorted(car.list()) == sorted(BLOCKS)
    lie(path, change)
    with CarBlocks(path) as car:
        assert sorted(car.list()) == sorted(BLOCKS)


def test_the_bytes_of_a_car_are_read_as_a_file_is(tmp_path: Path) -> None:
    whole = write_car(tmp_path / "x.car", BLOCKS).read_bytes()
    with CarBlocks(whole) as car:
        assert list(car.get_many(list(BLOCKS))) == list(BLOCKS.values())
    with pytest.raises(FormatError, match="a car in memory"):
        CarBlocks(whole[:60])


def test_an_index_that_leads_out_of_the_file_is_not_believed(tmp_path: Path) -> None:
    path = write_car(tmp_path / "x.car", BLOCKS)
    lie(path, lambda code, digests, offsets: (code, digests, offsets + np.uint64(1 << 40)))
    with CarBlocks(path) as car:
        assert list(car.get_many(list(BLOCKS))) == list(BLOCKS.values())


def test_an_index_that_leads_to_a_forged_copy_is_not_believed(tmp_path: Path) -> None:
    cid, data = next(iter(BLOCKS.items()))
    path = tmp_path / "x.car"
    with path.open("wb") as file:
        writer = CarWriter(file)
        writer.put(cid, bytes(len(data)))
        writer.finish()
    with CarBlocks(path) as car, pytest.raises(CorruptBlockError, match="damaged"):
        car.get(cid)


def test_a_note_is_read_where_it_is_whole_and_first(tmp_path: Path) -> None:
    cid, data = next(iter(BLOCKS.items()))
    note = CarNote(cid, None, "[0:1]")
    block = note.to_block()
    path = tmp_path / "x.car"
    for blocks, found in (
        ([block, (cid, data)], note),
        ([(cid, data), block], None),
        ([(block[0], block[1].replace(b"[0:1]", b"[0:9]"))], None),  # its bytes are not its cid's
        ([block], note),
        ([], None),
    ):
        for version in (1, 2):
            with path.open("wb") as file:
                writer = CarWriter(file, version=version)
                for one in blocks:
                    writer.put(*one)
                writer.finish()
            with CarBlocks(path) as car:
                assert car.note == found
                assert car.location == f"{path}, which has the box [0:1] alone" or found is None


def test_a_damaged_index_counts_as_none(tmp_path: Path) -> None:
    path = write_car(tmp_path / "x.car", BLOCKS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with CarBlocks(path) as car:
        assert list(car.get_many(list(BLOCKS))) == list(BLOCKS.values())


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_that_is_cut_off_says_so(tmp_path: Path, version: int) -> None:
    blocks = sample_blocks(5)
    path = write_car(tmp_path / "x.car", blocks, version=version, index=False)
    whole = path.read_bytes()
    with CarReader(path) as reader:
        borders = [section.offset for section in reader.sections()]
    ends = {border + here for border in borders for here in (-1, 0, 1, 40)}
    for size in sorted({*range(0, len(whole), 37), *ends, len(whole) - 1}):
        path.write_bytes(whole[:size])
        if version == 1 and size in borders:  # nobody can tell
            with CarBlocks(path) as car:
                assert list(car.list()) == list(blocks)[: borders.index(size)]
        else:
            with pytest.raises(FormatError):
                CarBlocks(path)


def test_what_is_no_car_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    for data in (b"", b"\0", b"<html>no</html>", bytes(100), encode_wrapper(1 << 40, 0)):
        path.write_bytes(data)
        with pytest.raises(FormatError):
            CarBlocks(path)
    with pytest.raises(StorageError, match="check its path"):
        CarBlocks(tmp_path / "none.car")


def test_the_windows_of_an_index_find_what_the_whole_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (20_000, 32), np.uint8)
    digests[:6000, :7] = 0  # what nobody's hash does, but someone hostile may
    offsets = np.arange(20_000, dtype=np.uint64)
    path = tmp_path / "index"
    path.write_bytes(encode_index([(0x1E, digests, offsets)]))
    source = carfile.open_source(path)
    index = WindowedIndex(source, 0)
    keys = np.empty((20_000, 34), np.uint8)
    keys[:, 0], keys[:, 1], keys[:, 2:] = 0x1E, 32, digests
    sample = rng.permutation(20_000)[:3000]
    assert index.find_many(keys[sample]).tolist() == sample.tolist()
    keys[:, 2:] ^= 0x55
    assert set(index.find_many(keys[sample]).tolist()) == {-1}
    source.close()
    blocks = write_car(tmp_path / "x.car", BLOCKS)
    monkeypatch.setattr(carfile, "_LARGE_INDEX", 0)
    with CarBlocks(blocks) as car:
        assert isinstance(car._index, WindowedIndex)
        assert list(car.get_many(list(BLOCKS))) == list(BLOCKS.values())
        assert all(car.get(cid) == data for cid, data in BLOCKS.items())
        assert list(car.list()) == list(BLOCKS)
        with pytest.raises(BlockNotFoundError):
            car.get(cid_of(RAW, BLAKE3, b"missing"))


def test_a_hostile_index_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carfile, "_LARGE_INDEX", 0)
    path = write_car(tmp_path / "x.car", BLOCKS)
    whole = path.read_bytes()
    with CarReader(path) as car:
        at = car.header.index_offset
    head = b"\x81\x08"
    claims = (
        head + b"\xff" * 4 + bytes(1000),
        head + b"\1\0\0\0" + b"\x1e" + bytes(7) + b"\xff" * 4 + bytes(1000),
        head + b"\1\0\0\0" + b"\x1e" + bytes(7) + b"\1\0\0\0\x28\0\0\0" + b"\xff" * 8,
    )
    for claim in claims:
        path.write_bytes(whole[:at] + claim)
        with CarBlocks(path) as car:
            assert list(car.get_many(list(BLOCKS))) == list(BLOCKS.values())
    for offset in (1 << 63, (1 << 64) - 1, 1 << 50):
        path.write_bytes(whole)
        lie(
            path,
            lambda code, digests, offsets, n=offset: (code, digests, offsets * 0 + np.uint64(n)),
        )
        with CarBlocks(path) as car:
            for read in (car.get, lambda cid, car=car: car.get_many([cid])):
                with contextlib.suppress(BlockNotFoundError):
                    read(next(iter(BLOCKS)))


# -- over http ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "index"), [(1, False), (2, False), (2, True)])
def test_a_file_on_a_server_is_read_in_place(
    server: Server, tmp_path: Path, version: int, index: bool
) -> None:
    path = write_car(tmp_path / "x.car", BLOCKS, version=version, index=index)
    server.data = path.read_bytes()
    assert len(server.data) > FIRST
    with CarBlocks(server.url) as car:
        opening = len(server.asked)
        assert opening == 2  # the begin; the index, or else all of it
        assert (None in server.asked) == (not index)
        assert list(car.get_many(list(BLOCKS))) == list(BLOCKS.values())
        assert len(server.asked) - opening <= 3
        assert all(car.get(cid) == data for cid, data in list(BLOCKS.items())[-40:])


def test_a_part_on_a_server_says_what_it_is(server: Server, tmp_path: Path) -> None:
    note = CarNote(next(iter(BLOCKS)), None, "[0:1]")
    server.data = write_car(tmp_path / "x.car", dict([note.to_block()]) | BLOCKS).read_bytes()
    with CarBlocks(server.url) as car, TieredBlocks(MemoryBlocks(), [car]) as tier:
        assert len(server.asked) == 2  # the note is in what was read anyway
        with pytest.raises(BlockNotFoundError, match=r"x\.car, which has the box \[0:1\] alone"):
            tier.get(cid_of(RAW, BLAKE3, b"elsewhere"))


def test_a_short_file_is_one_request(server: Server, tmp_path: Path) -> None:
    blocks = sample_blocks(20)
    for ranges in (True, False):
        server.data = write_car(tmp_path / "x.car", blocks).read_bytes()
        server.ranges = ranges
        server.asked.clear()
        with CarBlocks(server.url) as car:
            assert list(car.get_many(list(blocks))) == list(blocks.values())
        assert len(server.asked) == 1


def test_a_large_index_on_a_server_is_read_in_windows(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carfile, "_SMALL_INDEX", 0)
    server.data = write_car(tmp_path / "x.car", BLOCKS).read_bytes()
    with CarBlocks(server.url) as car:
        assert len(server.asked) == 3  # the begin, and what stands before each hash function
        assert list(car.get_many(list(BLOCKS))) == list(BLOCKS.values())
        assert None not in server.asked


def test_no_window_is_asked_for_twice_in_one_look(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carfile, "_SMALL_INDEX", 0)
    monkeypatch.setattr(carlookup, "_ROWS", 4)
    monkeypatch.setattr(carlookup, "_KEPT", 8)
    blocks = sample_blocks(600) | {cid_of(RAW, BLAKE3, bytes(FIRST)): bytes(FIRST)}
    server.data = write_car(tmp_path / "x.car", blocks).read_bytes()
    cids = list(blocks)
    random.Random(1).shuffle(cids)
    with CarBlocks(server.url) as car:
        opening = len(server.asked)
        assert opening == 2
        assert all(car.has_many(cids))
        windows = server.asked[opening:]
    # where digests lie unevenly, one stands in the window beside, which may be gone again
    assert len(windows) < 1.5 * len(blocks) / 4


def test_a_large_block_does_not_make_small_ones_dear(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carfile, "_SMALL_INDEX", 0)
    large = bytes(2 << 20)
    near = [random.Random(n).randbytes(900_000 + 100 * n) for n in range(6)]
    far = sample_blocks(20, 3) | {cid_of(RAW, SHA256, large): large}
    blocks = {cid_of(RAW, BLAKE3, data): data for data in (large, *near)} | far
    server.data = write_car(tmp_path / "x.car", blocks).read_bytes()
    with CarBlocks(server.url) as car:
        for cids in (list(blocks)[:7], list(far)[:15]):
            for cid in cids:
                assert car.get(cid) == blocks[cid]
            first, last = map(int, (server.asked[-1] or "")[6:].split("-"))
            assert last - first < 2 * max(len(blocks[cid]), 1 << 16)
        asked = len(server.asked)
        for cid in list(blocks)[1:7]:
            car.get(cid)
        assert len(server.asked) - asked < 9  # seldom a second time for the rest of one


def test_a_server_without_ranges_is_told(server: Server, tmp_path: Path) -> None:
    server.data = write_car(tmp_path / "x.car", BLOCKS).read_bytes()
    server.ranges = False
    with pytest.raises(RemoteError, match=r"no range requests.*download it"):
        CarBlocks(server.url)


def test_a_file_that_is_replaced_is_noticed(server: Server, tmp_path: Path) -> None:
    data = write_car(tmp_path / "x.car", BLOCKS).read_bytes()
    last = list(BLOCKS)[-40]
    for other, conditions in ((data, True), (data + b"x", True), (data, False)):
        server.data, server.etag, server.conditions = data, '"one"', conditions
        with CarBlocks(server.url) as car:
            server.data, server.etag = other, '"two"'
            with pytest.raises(RemoteError, match="was replaced"):
                car.get(last)


def test_a_wrong_byte_and_a_lying_index_on_a_server_are_told(
    server: Server, tmp_path: Path
) -> None:
    path = write_car(tmp_path / "x.car", BLOCKS)
    large = next(cid for cid, data in BLOCKS.items() if len(data) > 100_000)
    server.data = path.read_bytes().replace(BLOCKS[large], bytes(len(BLOCKS[large])))
    with CarBlocks(server.url) as car, pytest.raises(CorruptBlockError):
        car.get(large)
    lie(path, lambda code, digests, offsets: (code, digests, np.roll(offsets, 1)))
    server.data = path.read_bytes()
    with CarBlocks(server.url) as car, pytest.raises(CorruptBlockError, match="index=False"):
        car.get(large)
    with CarBlocks(server.url, index=False) as car:
        assert car.get(large) == BLOCKS[large]


def test_an_answer_that_breaks_off_is_told(server: Server, tmp_path: Path) -> None:
    server.data = write_car(tmp_path / "x.car", BLOCKS).read_bytes()
    with CarBlocks(server.url) as car:
        server.cut = True
        with pytest.raises(RemoteError):
            car.get(list(BLOCKS)[-40])
        server.cut = False
        assert car.get(list(BLOCKS)[-40]) == BLOCKS[list(BLOCKS)[-40]]


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("longer", [True, False])
def test_a_file_that_comes_whole_has_the_size_that_it_had(
    server: Server, tmp_path: Path, chunked: bool, longer: bool
) -> None:
    server.data = write_car(tmp_path / "x.car", BLOCKS, version=1, index=False).read_bytes()
    more = sample_blocks(50, 9)
    with CarReader(tmp_path / "x.car") as reader:
        borders = [section.offset for section in reader.sections()]
    if longer:
        server.whole = server.data
        server.data = server.data[: borders[-1]]
    else:
        write_car(tmp_path / "x.car", BLOCKS | more, version=1, index=False)
        server.whole = server.data[: borders[-1]]
    server.chunked = chunked
    if longer and chunked:  # what it is not to have is not looked at
        with CarBlocks(server.url) as car:
            assert len(car) == len(BLOCKS) - 1
        return
    with pytest.raises(RemoteError, match=r"was replaced|broke off"):
        CarBlocks(server.url)


def test_a_server_that_drips_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carsource, "_PAUSE", 0)
    server.data = write_car(tmp_path / "x.car", BLOCKS, version=1, index=False).read_bytes()
    with HttpClient(timeout=0.2) as client:
        for whole in (True, False):
            server.pause, server.ranges = 0.05, not whole
            with pytest.raises(RemoteError, match="are too few"):
                CarBlocks(server.url, client=client)


@pytest.mark.parametrize("said", ["bytes 0-262143/*", "none", "bytes 1-1/2"])
def test_a_range_that_is_none_is_told(server: Server, tmp_path: Path, said: str) -> None:
    server.data = write_car(tmp_path / "x.car", BLOCKS).read_bytes()
    server.said = said
    with pytest.raises(RemoteError, match="download the file"):
        CarBlocks(server.url)


def test_a_server_that_is_not_there_is_told(server: Server) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1"):
        CarBlocks(url)
