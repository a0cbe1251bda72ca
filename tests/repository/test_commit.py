"""Commits: what is written is read, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    RAW,
    SHA256,
    CidBytes,
    HashFunction,
    Link,
    cid_of,
    matches,
)
from cas_zarr.codecs import dagcbor
from cas_zarr.errors import CasZarrError, FormatError, InvalidArgumentError, LimitError
from cas_zarr.repository.commit import Commit

ROOT = cid_of(DAG_JSON, BLAKE3, b"root")
PARENT = cid_of(DAG_CBOR, BLAKE3, b"parent")

cids = st.builds(
    cid_of,
    st.just(DAG_CBOR),
    st.sampled_from([BLAKE3, SHA256]),
    st.binary(max_size=8),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(max_size=8)
    | cids.map(Link),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
commits = st.builds(
    Commit,
    root=st.builds(
        cid_of, st.just(DAG_JSON), st.sampled_from([BLAKE3, SHA256]), st.binary(max_size=8)
    ),
    parents=st.lists(cids, max_size=3).map(tuple),
    author=st.text(max_size=100),
    time=st.integers(-(2**63), 2**63 - 1),
    message=st.text(max_size=100),
    metadata=st.dictionaries(st.text(), values, max_size=3),
    signature=st.none() | st.binary(max_size=64),
)


@given(commits, st.sampled_from([BLAKE3, SHA256]))
def test_what_is_written_is_read(commit: Commit, function: HashFunction) -> None:
    cid, data = commit.to_block(function)
    assert matches(cid, data)
    assert Commit.from_block(cid, data) == commit
    assert Commit.from_block(cid, data).to_block(function) == (cid, data)


@given(commits, st.data())
def test_a_mutated_commit_is_refused_or_another(commit: Commit, data: st.DataObject) -> None:
    block = bytearray(commit.to_block()[1])
    at = data.draw(st.integers(0, len(block) - 1))
    block[at] ^= data.draw(st.integers(1, 255))
    cid = cid_of(DAG_CBOR, BLAKE3, block)
    try:
        other = Commit.from_block(cid, block)
    except FormatError:
        return
    assert other.to_block() == (cid, block)


def test_a_fixed_commit_has_a_fixed_cid() -> None:
    commit = Commit(
        root=ROOT, parents=(PARENT,), author="A <a@b>", time=1_700_000_000_000_000, message="m"
    )
    cid, data = commit.to_block()
    value = dagcbor.decode(data)
    assert value == {
        "type": "cas-zarr/commit",
        "version": 1,
        "root": Link(ROOT),
        "parents": [Link(PARENT)],
        "author": "A <a@b>",
        "time": 1_700_000_000_000_000,
        "message": "m",
        "metadata": {},
    }
    assert cid == cid_of(DAG_CBOR, BLAKE3, data)


BASE: dict[str, Any] = {
    "type": "cas-zarr/commit",
    "version": 1,
    "root": Link(ROOT),
    "parents": [],
    "author": "",
    "time": 0,
    "message": "",
    "metadata": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"type": "cas-zarr/page"},
        {"type": None},
        {"version": 2},
        {"version": True},
        {"version": 1.0},
        {"version": "1"},
        {"root": None},
        {"root": ROOT},
        {"root": Link(cid_of(RAW, BLAKE3, b""))},
        {"parents": None},
        {"parents": [None]},
        {"parents": [Link(ROOT)]},
        {"parents": [Link(PARENT)] * 65},
        {"author": 1},
        {"author": "x" * 1025},
        {"time": 1.5},
        {"time": True},
        {"time": 2**63},
        {"message": b"m"},
        {"message": "x" * (64 * 1024 + 1)},
        {"metadata": []},
        {"signature": "text"},
        {"signature": None},
        {"unknown": 1},
    ],
)
def test_a_malformed_commit_is_refused(change: dict[str, Any]) -> None:
    data = dagcbor.encode(BASE | change)
    with pytest.raises(FormatError, match="commit"):
        Commit.from_block(cid_of(DAG_CBOR, BLAKE3, data), data)


@pytest.mark.parametrize("field", sorted(BASE))
def test_every_field_is_needed(field: str) -> None:
    data = dagcbor.encode({key: value for key, value in BASE.items() if key != field})
    with pytest.raises(FormatError, match="commit"):
        Commit.from_block(cid_of(DAG_CBOR, BLAKE3, data), data)


def test_bytes_that_are_no_commit() -> None:
    for data in (b"", b"\xff", b"\xa0", b"\x80", b"\x01" * 100):
        with pytest.raises(FormatError, match="no commit"):
            Commit.from_block(cid_of(DAG_CBOR, BLAKE3, data), data)
    with pytest.raises(FormatError, match="no commit"):
        Commit.from_block(CidBytes(ROOT), b"{}")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"message": "x" * (64 * 1024 + 1)}, LimitError),
        ({"author": "é" * 513}, LimitError),
        ({"message": "\ud800"}, InvalidArgumentError),
        ({"message": 1}, InvalidArgumentError),
        ({"time": 2**63}, LimitError),
        ({"time": 0.5}, InvalidArgumentError),
        ({"parents": (PARENT,) * 65}, LimitError),
        ({"parents": (ROOT,)}, InvalidArgumentError),
        ({"root": PARENT}, InvalidArgumentError),
        ({"metadata": [1]}, InvalidArgumentError),
        ({"metadata": {"a": object()}}, InvalidArgumentError),
        ({"metadata": {"a": float("nan")}}, InvalidArgumentError),
        ({"metadata": {1: 2}}, InvalidArgumentError),
        ({"metadata": {"a": "x" * (1 << 20)}}, LimitError),
        ({"signature": "s"}, InvalidArgumentError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[CasZarrError]) -> None:
    with pytest.raises(error):
        Commit(**({"root": ROOT} | arguments)).to_block()
