"""CAR files: the samples of others, what comes back, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    HASHES,
    RAW,
    SHA256,
    CidBytes,
    as_cid_bytes,
    cid_of,
    digest_of,
    encode_varint,
)
from cas_zarr.codecs.car import (
    DATA_START,
    CarReader,
    CarWriter,
    decode_roots,
    encode_roots,
    encode_wrapper,
)
from cas_zarr.codecs.carindex import decode_index, encode_index, index_groups
from cas_zarr.errors import (
    CasZarrError,
    CorruptBlockError,
    FormatError,
    InvalidArgumentError,
    InvalidCIDError,
    LimitError,
    StorageError,
)

SAMPLES = ("carv1-basic", "carv2-basic")
GO_SAMPLES = ("go-sample-v1", "go-sample-v2-indexless", "go-sample-wrapped-v2")


class _Stream(io.RawIOBase):
    """A source that cannot seek and gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int = 7) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(self._step if size < 0 else min(size, self._step))


def _write(
    blocks: list[tuple[CidBytes, bytes]],
    roots: tuple[CidBytes, ...] = (),
    *,
    version: int = 2,
    index: bool = True,
) -> bytes:
    out = io.BytesIO()
    writer = CarWriter(out, roots, version=version, index=index)
    for cid, data in blocks:
        writer.put(cid, data)
    assert writer.finish() == len(out.getvalue())
    return out.getvalue()


# -- samples of others ------------------------------------------------------------------------


def _binary(text: str) -> bytes:
    cid = as_cid_bytes(text)
    return cid if text.startswith("b") else cid[2:]  # a CIDv0 stands in a file as it is


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_hold_what_their_descriptions_say(conformance: Path, name: str) -> None:
    path = conformance / "car" / f"{name}.car"
    wanted = json.loads(path.with_suffix(".json").read_text())
    with CarReader(path) as car:
        header = car.header
        assert header.version == wanted["header"]["version"]
        assert list(header.roots) == [_binary(root["/"]) for root in wanted["header"]["roots"]]
        if header.version == 2:
            assert header.data_offset == wanted["header"]["dataOffset"]
            assert header.data_size == wanted["header"]["dataSize"]
            assert header.index_offset == wanted["header"]["indexOffset"]
            assert header.characteristics == bytes(16)
            assert car.index() is None  # of a kind that was given up
        found = list(car.sections())
    assert [s.cid for s in found] == [_binary(block["cid"]["/"]) for block in wanted["blocks"]]
    assert [s.size for s in found] == [block["blockLength"] for block in wanted["blocks"]]
    starts = [block["offset"] - header.data_offset for block in wanted["blocks"]]
    assert [s.offset for s in found] == starts
    content = path.read_bytes()
    with CarReader(path) as car:
        blocks = list(car)
        for (_, data), block in zip(blocks, wanted["blocks"], strict=True):
            at = block["blockOffset"]
            assert data == content[at : at + block["blockLength"]]
    payload = _write(blocks, header.roots, version=1)
    size = header.data_size or len(content)
    assert payload == content[header.data_offset : header.data_offset + size]


@pytest.mark.parametrize("name", GO_SAMPLES)
def test_the_samples_of_go_car_are_written_again_to_the_byte(conformance: Path, name: str) -> None:
    path = conformance / "car" / f"{name}.car"
    with CarReader(path, verify=False) as car:
        header = car.header
        blocks = list(car)
        index = car.index()
    assert len(blocks) == 1049
    for cid, data in blocks:  # blake2b-256 and identity, neither of which is read without asking
        if cid[2:5] == encode_varint(0xB220):
            assert hashlib.blake2b(data, digest_size=32).digest() == digest_of(cid)
    with CarReader(path) as car, pytest.raises(InvalidCIDError, match="0xb220"):
        list(car)
    again = _write(blocks, header.roots, version=header.version, index=index is not None)
    assert again == path.read_bytes()


def test_the_index_of_go_car_is_written_again_to_the_byte(conformance: Path) -> None:
    data = (conformance / "car" / "go-sample-multihash-index-sorted.carindex").read_bytes()
    decoded = decode_index(data)
    assert [(code, digests.shape) for code, digests, _ in decoded] == [(0xB220, (1043, 32))]
    assert encode_index(decoded) == data
    rng = np.random.default_rng(0)
    code, digests, offsets = decoded[0]
    order = rng.permutation(len(offsets))
    assert encode_index([(code, digests[order], offsets[order])]) == data


# -- what comes back ---------------------------------------------------------------------------

_blocks = st.lists(
    st.builds(
        lambda codec, function, data: (cid_of(codec, function, data), data),
        st.sampled_from([RAW, DAG_PB, DAG_CBOR, DAG_JSON]),
        st.sampled_from(list(HASHES.values())),
        st.binary(max_size=300),
    ),
    max_size=12,
)


@given(_blocks, st.sampled_from([1, 2]), st.booleans(), st.integers(1, 40))
def test_what_is_written_is_read(
    blocks: list[tuple[CidBytes, bytes]], version: int, index: bool, step: int
) -> None:
    roots = tuple(cid for cid, _ in blocks[:2])
    data = _write(blocks, roots, version=version, index=index)
    for source in (io.BytesIO(data), _Stream(data, step), io.BytesIO(b"before" + data)):
        if isinstance(source, io.BytesIO) and source.getvalue() != data:
            source.seek(6)
        reader = CarReader(source)  # type: ignore[arg-type]
        assert reader.header.version == version
        assert reader.header.roots == roots
        assert list(reader) == blocks
    reader = CarReader(io.BytesIO(data))
    found = reader.index()
    if version == 1 or not index:
        assert found is None
        return
    assert found is not None
    listed = {
        (code, digests[i].tobytes(), int(offsets[i]))
        for code, digests, offsets in found
        for i in range(len(offsets))
    }
    assert listed == {(s.cid[-34], digest_of(s.cid), s.offset) for s in reader.sections()}


@given(st.lists(st.builds(lambda data: cid_of(DAG_CBOR, SHA256, data), st.binary()), max_size=300))
def test_roots_come_back(roots: list[CidBytes]) -> None:
    header = encode_roots(roots)
    body = header[len(encode_varint(len(header) - (1 if len(header) < 129 else 2))) :]
    assert decode_roots(body) == tuple(roots)


def test_a_million_records_are_a_matter_of_arrays() -> None:
    rng = np.random.default_rng(1)
    digests = rng.integers(0, 256, (50_000, 32), dtype=np.uint8)
    digests[100:120, :31] = digests[100, :31]  # equal but for the end
    offsets = np.arange(50_000, dtype=np.uint64)
    ((code, found, places),) = decode_index(encode_index([(0x1E, digests, offsets)]))
    assert code == 0x1E
    assert (found == digests[places]).all()
    rows = [row.tobytes() for row in found]
    assert rows == sorted(rows)


def test_identity_blocks_are_read_and_not_indexed() -> None:
    inline = CidBytes(b"\x01\x55\x00\x03abc")
    data = _write([(inline, b"abc"), (cid_of(RAW, BLAKE3, b"x"), b"x")])
    reader = CarReader(io.BytesIO(data))
    index = reader.index()
    assert index is not None
    assert [(code, len(offsets)) for code, _, offsets in index] == [(0x1E, 1)]
    assert next(iter(reader)) == (inline, b"abc")
    with pytest.raises(CorruptBlockError):
        list(CarReader(io.BytesIO(_write([(inline, b"abd")]))))


# -- what is refused ---------------------------------------------------------------------------


def _car() -> bytes:
    blocks = [(cid_of(RAW, BLAKE3, data), data) for data in (b"", b"one", bytes(200))]
    return _write(blocks, (blocks[0][0],))


@pytest.mark.parametrize("version", [1, 2])
def test_a_car_cut_off_anywhere_is_refused_or_ends_with_a_whole_block(version: int) -> None:
    blocks = [(cid_of(RAW, BLAKE3, data), data) for data in (b"", b"one", bytes(200))]
    data = _write(blocks, (blocks[0][0],), version=version, index=False)
    borders = {
        DATA_START * (version - 1) + s.offset for s in CarReader(io.BytesIO(data)).sections()
    }
    for length in range(len(data)):
        try:
            got = list(CarReader(io.BytesIO(data[:length])))
        except FormatError:
            assert version == 2 or length not in borders
        else:
            assert version == 1
            assert length in borders
            assert got == blocks[: len(got)]


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_a_flipped_bit_never_gives_other_bytes(flip: int) -> None:
    data = _car()
    blocks = {cid[-34:]: content for cid, content in CarReader(io.BytesIO(data))}
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= flip
        for call in (list, CarReader.index):
            try:
                result = call(CarReader(io.BytesIO(damaged)))
            except CasZarrError:
                continue
            if call is list:
                assert all(blocks[cid[-34:]] == content for cid, content in result)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    for source in (data, encode_wrapper(len(data) or 1, 0) + data, encode_roots(()) + data):
        try:
            list(CarReader(io.BytesIO(source)))
        except CasZarrError:
            pass
        else:
            assert source == encode_roots(())
    try:
        decode_index(data)
    except CasZarrError:
        pass
    else:
        assert encode_index(decode_index(data)) == data


class _Counting(io.BytesIO):
    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        self.largest = max(self.largest, size or 0)
        return super().read(size)


def test_claimed_sizes_are_not_believed() -> None:
    cid = cid_of(RAW, BLAKE3, b"x")
    for claim in (1 << 22, 1 << 40, 1 << 62):
        source = _Counting(encode_roots(()) + encode_varint(claim) + cid + b"x")
        with pytest.raises(FormatError, match=str(claim)):
            list(CarReader(source))
        assert source.largest <= 1 << 20
        source = _Counting(encode_varint(claim) + b"\xa2")
        with pytest.raises(FormatError, match="does not begin"):
            CarReader(source)
    source = _Counting(encode_roots(()) + encode_varint(1 << 30) + cid + b"x")
    with pytest.raises(FormatError, match="cut off"):
        list(CarReader(source, max_block=1 << 30))
    assert source.largest <= 1 << 20


def test_the_largest_block_can_be_raised() -> None:
    data = bytes((2 << 20) + 1)
    car = _write([(cid_of(RAW, BLAKE3, data), data)])
    with pytest.raises(LimitError, match=str(len(data))):
        list(CarReader(io.BytesIO(car)))
    assert len(next(iter(CarReader(io.BytesIO(car), max_block=3 << 20)))[1]) == len(data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xa0",
        b"\xa1\x67version\x01",
        b"\xa2\x67version\x01\x65roots\x80",  # keys out of order
        b"\xa2\x65roots\x80\x67version\x02",
        b"\xa2\x65roots\x80\x67version\x18\x01",  # not the shortest form
        b"\xa2\x65roots\x98\x00\x67version\x01",
        b"\xa2\x65roots\x81\x67version\x01",
        b"\xa2\x65roots\x81\x41\x00\x67version\x01",
        b"\xa2\x65roots\x9a\xff\xff\xff\xff\x67version\x01",
        b"\xa2\x65roots\x81\xd8\x2a\x43\x00\x01\x55\x67version\x01",
        encode_roots(())[1:] + b"\x00",
    ],
)
def test_a_header_in_another_form_is_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        decode_roots(body)
    with pytest.raises(FormatError):
        CarReader(io.BytesIO(encode_varint(len(body)) + body))


def test_a_car_that_was_not_finished_is_refused() -> None:
    payload = encode_roots(())
    for data_offset, data_size, index in ((0, 0, 0), (51, 0, 0), (50, 18, 0), (51, 18, 60)):
        head = encode_wrapper(data_size, index, data_offset=data_offset)
        with pytest.raises(FormatError, match="not finished"):
            CarReader(io.BytesIO(head + payload))
    with pytest.raises(FormatError, match="version 2 stands where"):
        CarReader(io.BytesIO(encode_wrapper(100, 0) + encode_wrapper(18, 0) + payload))


def test_a_payload_may_begin_later_and_be_padded() -> None:
    cid = cid_of(RAW, BLAKE3, b"x")
    payload = _write([(cid, b"x")], version=1)
    index = encode_index(
        [(0x1E, np.frombuffer(digest_of(cid), np.uint8)[None], np.array([18], np.uint64))]
    )
    head = encode_wrapper(len(payload), 100 + len(payload) + 9, data_offset=100)
    data = head + bytes(49) + payload + bytes(9) + index
    reader = CarReader(io.BytesIO(data))
    found = reader.index()
    assert found is not None
    assert found[0][2].tolist() == [18]
    assert list(reader) == [(cid, b"x")]


def test_an_index_sorted_is_skipped() -> None:
    payload = _write([], version=1)
    data = encode_wrapper(len(payload), DATA_START + len(payload)) + payload + b"\x80\x08\0\0\0\0"
    reader = CarReader(io.BytesIO(data))
    assert reader.index() is None
    assert list(reader) == []
    with pytest.raises(FormatError, match="0x400"):
        index_groups(b"\x80\x08\0\0\0\0")


def _u(value: int, width: int) -> bytes:
    return value.to_bytes(width, "little")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        _u(1, 4),
        _u(1, 4) + _u(0x1E, 8) + _u(1, 4) + _u(40, 4) + _u(1 << 62, 8),
        _u(1, 4) + _u(0x1E, 8) + _u(1, 4) + _u(40, 4) + _u(41, 8) + bytes(41),
        _u(1, 4) + _u(0x1E, 8) + _u(1, 4) + _u(7, 4) + _u(0, 8),
        _u(1, 4) + _u(0x1E, 8) + _u(1, 4) + _u(1 << 31, 4) + _u(0, 8),
        _u(2, 4) + (_u(0x1E, 8) + _u(0, 4)) * 2,
        _u(1, 4) + _u(0x1E, 8) + _u(2, 4) + (_u(40, 4) + _u(0, 8)) * 2,
        _u(0xFFFFFFFF, 4),
        _u(0, 4) + b"more",
        _u(1, 4) + _u(0x1E, 8) + _u(1, 4) + _u(40, 4) + _u(80, 8) + b"b" * 40 + b"a" * 40,
        _u(1, 4) + _u(0x1E, 8) + _u(1, 4) + _u(40, 4) + _u(40, 8) + b"\xff" * 40,
    ],
)
def test_an_index_that_does_not_add_up_is_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        decode_index(b"\x81\x08" + body)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="version 3"):
        CarWriter(io.BytesIO(), version=3)
    with pytest.raises(StorageError, match="nothing"):
        CarReader(tmp_path / "nothing.car")
    reader = CarReader(_Stream(_car()))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="seek"):
        reader.index()


def test_a_file_object_of_the_caller_stays_open() -> None:
    source: BinaryIO = io.BytesIO(_car())
    with CarReader(source) as reader:
        list(reader)
    assert not source.closed


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="check its path"):
        CarReader("nul\0.car")
    with pytest.raises(StorageError, match="/proc/self/mem: input/output error"):
        CarReader("/proc/self/mem")  # opens, and has nothing at its begin
    path = tmp_path / "x.car"
    path.write_bytes(_car())
    with path.open() as text, pytest.raises(InvalidArgumentError, match="'rb'"):
        CarReader(text)  # type: ignore[arg-type]
    for buffering in (0, -1):
        source = path.open("rb", buffering=buffering)
        reader = CarReader(source)  # type: ignore[arg-type]
        source.close()
        for broken in (lambda r=reader: r.index(), lambda s=source: CarReader(s)):
            with pytest.raises(StorageError, match="closed file"):
                broken()
    out, into = os.pipe()
    os.set_blocking(out, False)
    with open(out, "rb", buffering=0) as source, open(into, "wb", buffering=0) as target:
        target.write(encode_roots(()))
        reader = CarReader(source)  # type: ignore[arg-type]
        with pytest.raises(StorageError, match="does not wait"):  # it is not at its end
            list(reader)


@pytest.mark.parametrize(
    "data",
    [
        b"<html>" + b"x" * 100,
        encode_wrapper(0, 0) + b"x" * 100,
        encode_wrapper(60, 0) + b"<html>" + b"x" * 100,
        encode_roots(()) + b"\x0a" + b"\xff" * 10,
    ],
)
def test_what_is_wrong_is_said_of_a_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.car"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"x\.car"), CarReader(path) as car:
        list(car)


class _Greedless(io.RawIOBase):
    """Takes a few bytes at a time, as a socket or a nearly full disk may."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)[:7]  # type: ignore[call-overload]
        self.taken += piece
        return len(piece)


def test_a_file_without_a_buffer_gets_all_of_it() -> None:
    blocks = [(cid_of(RAW, BLAKE3, data), data) for data in (b"", b"one", bytes(200_000))]
    target = _Greedless()
    writer = CarWriter(target, version=1)  # type: ignore[arg-type]
    for cid, data in blocks:
        writer.put(cid, memoryview(data))
    assert writer.finish() == len(target.taken)
    assert target.taken == _write(blocks, version=1)


def test_a_pipe_that_does_not_wait_is_told_when_it_is_full() -> None:
    data = bytes(1 << 20)
    out, into = os.pipe()
    os.set_blocking(into, False)
    with open(out, "rb"), open(into, "wb", buffering=0) as target:
        writer = CarWriter(target, version=1)
        with pytest.raises(BlockingIOError):
            writer.put(cid_of(RAW, BLAKE3, data), data)
    out, into = os.pipe()
    read: list[bytes] = []
    with open(out, "rb") as source, open(into, "wb", buffering=0) as target:
        thread = threading.Thread(target=lambda: read.append(source.read()))
        thread.start()
        writer = CarWriter(target, version=1)
        writer.put(cid_of(RAW, BLAKE3, data), data)
        target.close()
        thread.join()
    assert len(read[0]) == writer.finish()
