"""Forks: many workers write one session, and one commit shows all of it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_zarr import CASStore, Repository
from cas_zarr.errors import (
    CasZarrError,
    ConflictError,
    InvalidArgumentError,
    WriteOnceError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.session import Session

ARRAY = b'{"zarr_format":3,"node_type":"array"}'


def session_of(keys: dict[str, bytes]) -> Session:
    session = Repository.memory().session()
    session.prepare().update(keys)
    return session


def travelled(fork: Any) -> Any:
    return pickle.loads(pickle.dumps(fork))


# -- the law: the root follows from the keys alone -------------------------------------------------

KEYS = ["zarr.json", "a/zarr.json", "a/note", "b/zarr.json", "b/plain", "b/deep/zarr.json"]
KEYS += [f"a/c/{row}/{column}" for row in range(3) for column in range(3)]
KEYS += [f"b/c/{row}" for row in range(4)] + ["b/deep/c/0", "b/c/deep"]
VALUES = st.sampled_from([b"one", b"two", b"three" * 400_000])
WRITES = st.dictionaries(st.sampled_from(KEYS), st.one_of(VALUES, st.none()), max_size=8)


def written(mapping: Any, writes: dict[str, bytes | None]) -> None:
    for key, value in writes.items():
        if value is None:
            mapping.discard(key)
        elif key.endswith("zarr.json"):
            mapping.set_value(key, b'{"zarr_format":3,"node_type":"array","n":%d}' % len(value))
        else:
            mapping.set_value(key, value)


@settings(max_examples=80, deadline=None)
@given(WRITES, st.lists(WRITES, min_size=1, max_size=4), st.booleans())
def test_disjoint_forks_make_the_root_that_one_writer_makes(
    before: dict[str, bytes | None], parts: list[dict[str, bytes | None]], settle: bool
) -> None:
    seen: set[str] = set()
    session, alone = session_of({}), session_of({})
    for mapping in (session.prepare(), alone.prepare()):
        written(mapping, before)
    fork = session.fork()
    base = dict(fork.mapping)
    forks = []
    for part in parts:
        mine = {key: value for key, value in part.items() if key not in seen}
        seen |= mine.keys()
        one = travelled(fork)
        written(one.mapping, mine)
        if settle:
            list(one.mapping)
        written(alone.prepare(), mine)
        forks.append(travelled(one))
    try:
        session.merge(forks)
    except ConflictError:
        # One changed a document, and another wrote or deleted something that it rules.
        assert any(key.endswith("zarr.json") for part in parts for key in part)
        assert dict(session.prepare()) == base
        return
    assert session.flush() == alone.flush()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS[6:15]), VALUES, max_size=6), max_size=4))
def test_chunks_conflict_where_they_differ_and_nowhere_else(
    parts: list[dict[str, bytes]],
) -> None:
    session = session_of({"a/zarr.json": ARRAY})
    fork = session.fork()
    forks = []
    for part in parts:
        one = travelled(fork)
        one.mapping.update(part)
        forks.append(travelled(one))
    values = {key: {part[key] for part in parts if key in part} for key in KEYS[6:15]}
    twice = {key for key, found in values.items() if len(found) > 1}
    if not twice:
        session.merge(forks)
        expected = {key: value for key, found in values.items() for value in found}
        assert dict(session.mapping) == {"a/zarr.json": ARRAY, **expected}
        return
    with pytest.raises(ConflictError, match="written by two, with different values") as error:
        session.merge(forks)
    assert {conflict.key for conflict in error.value.conflicts} == twice
    assert dict(session.mapping) == {"a/zarr.json": ARRAY}


# -- what is refused, and what is seen -------------------------------------------------------------


def test_nobody_sees_a_fork_before_it_is_merged_and_flushed() -> None:
    session = session_of({"a/zarr.json": ARRAY, "a/c/0": b"old"})
    fork = session.fork()
    assert session.repository.refs.branch("main") is None
    fork.mapping["a/c/1"] = b"new"
    assert "a/c/1" not in session.mapping
    session.merge([fork])
    assert session.mapping["a/c/1"] == b"new"
    assert session.repository.refs.branch("main") is None
    session.commit("both")
    assert dict(session.repository.at("main"))["a/c/1"] == b"new"


def test_a_session_goes_on_beside_its_forks() -> None:
    session = session_of({"a/zarr.json": ARRAY})
    fork = session.fork()
    session.mapping["a/c/0"] = b"mine"
    session.commit("meanwhile")
    fork.mapping["a/c/1"] = b"theirs"
    later = session.fork()
    later.mapping["a/c/2"] = b"later"
    session.merge([fork, later])
    session.commit("all")
    assert dict(session.mapping) == {
        "a/zarr.json": ARRAY,
        "a/c/0": b"mine",
        "a/c/1": b"theirs",
        "a/c/2": b"later",
    }
    fork.mapping["a/c/0"] = b"not mine"
    with pytest.raises(ConflictError):
        session.merge([fork])
    assert session.mapping["a/c/0"] == b"mine"


def test_a_conflict_in_one_of_two_bases_changes_nothing() -> None:
    session = session_of({"a/zarr.json": ARRAY})
    first = session.fork()
    session.mapping["a/c/9"] = b"x"
    second = session.fork()
    first.mapping["a/c/0"] = b"one"
    second.mapping["a/c/0"] = b"two"
    before = session.prepare().cid()
    with pytest.raises(ConflictError):
        session.merge([first, second])
    assert session.prepare().cid() == before


def test_the_same_fork_twice_and_a_retried_one_are_no_conflict() -> None:
    session = session_of({"a/zarr.json": ARRAY})
    fork = session.fork()
    tries = [travelled(fork) for _ in range(2)]
    for one in tries:
        one.mapping["a/c/0"] = b"x"
    session.merge([*tries, tries[0], fork])
    assert session.mapping["a/c/0"] == b"x"


def test_forks_are_merged_where_they_were_made() -> None:
    session, other = session_of({}), session_of({"zarr.json": ARRAY})
    fork = session.fork()
    for place in (other, fork):
        with pytest.raises(InvalidArgumentError, match="made"):
            place.merge([fork])
    with pytest.raises(InvalidArgumentError, match="merge it into the store that made it"):
        fork.commit("no")
    session.discard()
    with pytest.raises(InvalidArgumentError, match="is no fork of this session"):
        session.merge([fork])
    with pytest.raises(InvalidArgumentError, match="on a branch"):
        CASStore(CASMapping(session.repository.blocks)).fork()


def test_a_strict_fork_binds_nothing_anew() -> None:
    repo = Repository.memory()
    session = repo.session(strict=True)
    session.mapping["a"] = b"1"
    fork = travelled(session.fork())
    fork.mapping["b"] = b"2"
    with pytest.raises(WriteOnceError):
        fork.mapping["a"] = b"3"
    session.merge([fork])
    assert dict(session.mapping) == {"a": b"1", "b": b"2"}


def test_memory_does_not_travel_to_another_process() -> None:
    data = pickle.dumps(session_of({}).fork())
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        error = pool.submit(_loading, data).result()
    assert "in the memory of process" in error


def _loading(data: bytes) -> str:
    try:
        pickle.loads(data)
    except CasZarrError as error:
        return str(error)
    return ""


# -- stores and processes --------------------------------------------------------------------------

SHAPE, CHUNKS = (64, 30), (4, 10)


def made(path: Path) -> CASStore:
    store = CASStore(path)
    zarr.create_array(store, name="data", shape=SHAPE, dtype="i4", chunks=CHUNKS)
    return store


def write_rows(fork: CASStore, start: int) -> CASStore:
    rows = np.arange(start * 30, (start + 8) * 30, dtype="i4").reshape(8, 30)
    zarr.open_array(fork, path="data")[start : start + 8] = rows
    return fork


EXPECTED = np.arange(64 * 30, dtype="i4").reshape(SHAPE)


def test_processes_write_one_commit(tmp_path: Path) -> None:
    store = made(tmp_path / "x.cas")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        forks = list(pool.map(write_rows, [store.fork()] * 8, range(0, 64, 8)))
    assert zarr.open_array(store, path="data")[:].sum() == 0
    store.merge(*forks)
    store.commit("by eight")
    with CASStore(tmp_path / "x.cas", version="main") as read:
        np.testing.assert_array_equal(zarr.open_array(read, path="data", mode="r")[:], EXPECTED)
    assert Repository.open(tmp_path / "x.cas").verify(data=True).ok


def test_threads_write_one_fork(tmp_path: Path) -> None:
    store = made(tmp_path / "x.cas")
    fork = store.fork()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_rows, [fork] * 8, range(0, 64, 8)))
    store.merge(fork)
    np.testing.assert_array_equal(zarr.open_array(store, path="data")[:], EXPECTED)


def die_in_the_middle(fork: CASStore, start: int) -> None:
    write_rows(fork, start)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path) -> None:
    store = made(tmp_path / "x.cas")
    fork = store.fork()
    process = multiprocessing.get_context("spawn").Process(target=die_in_the_middle, args=(fork, 0))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    forks = [write_rows(travelled(fork), start) for start in range(0, 64, 8)]
    store.merge(*forks)
    store.commit("after all")
    np.testing.assert_array_equal(zarr.open_array(store, path="data")[:], EXPECTED)
    assert Repository.open(tmp_path / "x.cas").verify(data=True).ok


def test_two_workers_that_share_a_chunk_are_told(tmp_path: Path) -> None:
    store = made(tmp_path / "x.cas")
    forks = [travelled(store.fork()) for _ in range(2)]
    for number, fork in enumerate(forks):  # rows 4 to 8 are one chunk
        zarr.open_array(fork, path="data")[4 + 2 * number : 6 + 2 * number] = 1
    with pytest.raises(ConflictError, match=r"chunk \(1, 0\) of 'data' was written by two"):
        store.merge(*forks)


def test_a_store_with_changes_names_forks_when_it_is_pickled(tmp_path: Path) -> None:
    store = made(tmp_path / "x.cas")
    with pytest.raises(CasZarrError, match=r"store\.fork\(\)"):
        pickle.dumps(store)
    store.flush()
    copy = pickle.loads(pickle.dumps(store))
    zarr.open_array(copy, path="data")[:] = EXPECTED
    copy.close()
    with CASStore(tmp_path / "x.cas") as read:
        np.testing.assert_array_equal(zarr.open_array(read, path="data")[:], EXPECTED)


def test_a_fork_says_what_it_is(tmp_path: Path) -> None:
    store = made(tmp_path / "x.cas")
    fork = store.fork()
    assert "a fork" in str(fork)
    assert fork != store
    assert fork.fork() == fork
    assert not fork.read_only
    write_rows(fork, 0)
    assert fork.flush() != store.flush()
    with fork.with_read_only(True) as sibling:
        assert zarr.open_array(sibling, path="data", mode="r")[0, 1] == 1
