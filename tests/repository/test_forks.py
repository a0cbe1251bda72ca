"""Forks: many workers write one session, and one commit shows all of it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.context import BaseContext
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
    StorageError,
    WriteOnceError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.gc import collect
from cas_zarr.repository.session import Session, View

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
    session.merge(fork)
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
    for place in (other, fork, View(CASMapping(session.repository.blocks))):
        for forks in (fork, [fork], iter([fork])):
            with pytest.raises(InvalidArgumentError, match="made"):
                place.merge(forks)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="merge it into the store that made it"):
        fork.commit("no")
    for what in (None, session, [session]):
        with pytest.raises(InvalidArgumentError, match="is no fork"):
            session.merge(what)  # type: ignore[arg-type]
    session.discard()
    with pytest.raises(InvalidArgumentError, match="is no fork of this session"):
        session.merge([fork])
    with pytest.raises(InvalidArgumentError, match="on a branch"):
        CASStore(CASMapping(session.repository.blocks)).fork()


def test_a_fork_of_equal_data_elsewhere_is_another_ones() -> None:
    here, there = session_of({"a/zarr.json": ARRAY}), session_of({"a/zarr.json": ARRAY})
    mine, fork = here.fork(), there.fork()
    fork.mapping["a/c/0"] = b"whose block is not here"
    assert mine.base == fork.base
    with pytest.raises(InvalidArgumentError, match="is no fork of this session"):
        here.merge([travelled(fork)])


def test_what_a_fork_flushes_comes_back_with_it() -> None:
    session = session_of({"a/zarr.json": ARRAY})
    fork = session.fork()
    fork.mapping["a/c/0"] = b"before"
    fork.mapping.flush()
    fork.mapping["a/c/1"] = b"after"
    session.merge([travelled(fork)])
    assert dict(session.mapping) == {"a/zarr.json": ARRAY, "a/c/0": b"before", "a/c/1": b"after"}


def test_wide_and_narrow_codes_are_united() -> None:
    far, farther = (f"a/c/4294967295/{row}/4294967295" for row in (0, 9))
    session = session_of({"a/zarr.json": ARRAY, "a/c/0/0/0": b"0", far: b"1"})
    forks = [travelled(session.fork()) for _ in range(3)]
    forks[0].mapping[farther] = b"2"
    del forks[1].mapping["a/c/0/0/0"]
    del forks[2].mapping[far]
    forks[2].mapping["a/c/0/0/1"] = b"3"
    session.merge(map(travelled, forks))
    assert dict(session.mapping) == {"a/zarr.json": ARRAY, farther: b"2", "a/c/0/0/1": b"3"}
    forks = [travelled(session.fork()) for _ in range(2)]
    forks[0].mapping[farther] = b"4"
    del forks[1].mapping[farther]
    with pytest.raises(ConflictError, match="was deleted by another"):
        session.merge(forks)


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


def test_memory_does_not_travel_to_another_process(processes: BaseContext) -> None:
    data = pickle.dumps(session_of({}).fork())
    with ProcessPoolExecutor(1, processes) as pool:
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


def test_processes_write_one_commit(tmp_path: Path, processes: BaseContext) -> None:
    store = made(tmp_path / "x.cas")
    with ProcessPoolExecutor(2, processes) as pool:
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


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path, processes: BaseContext) -> None:
    store = made(tmp_path / "x.cas")
    fork = store.fork()
    process = processes.Process(target=die_in_the_middle, args=(fork, 0))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    forks = [write_rows(travelled(fork), start) for start in range(0, 64, 8)]
    store.merge(*forks)
    store.commit("after all")
    np.testing.assert_array_equal(zarr.open_array(store, path="data")[:], EXPECTED)
    assert Repository.open(tmp_path / "x.cas").verify(data=True).ok


def test_a_worker_meets_a_repository_that_was_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "x.cas"
    for last in (False, True):
        store = made(folder)
        forks = [write_rows(travelled(store.fork()), start) for start in range(0, 64, 8)]
        if not last:  # the tasks failed: nothing comes back, and all is removed
            store.session.discard()
            shutil.rmtree(folder)
    store.merge(*map(travelled, forks))
    store.commit("anew")
    assert Repository.open(folder).verify(data=True).ok
    np.testing.assert_array_equal(zarr.open_array(store, path="data")[:], EXPECTED)


SHARDED: dict[str, Any] = {
    "shape": 4 << 20,
    "shards": (4 << 20,),
    "dtype": "u1",
    "compressors": None,
}


def cut_anew_and_die(fork: CASStore, file: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, 4 << 20, "u1")
    zarr.open_array(fork, path="data")[:] = values
    assert fork.mapping.view.node("data")
    document = json.loads(fork.mapping["data/zarr.json"])
    document["codecs"][0]["configuration"]["chunk_shape"] = [1 << 19]
    fork.mapping["data/zarr.json"] = json.dumps(document).encode()
    file.write_bytes(pickle.dumps(fork))
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_leaves_a_worker_is_durable_and_so_is_what_was_cut_anew(
    tmp_path: Path, processes: BaseContext
) -> None:
    store, file = CASStore(tmp_path / "x.cas"), tmp_path / "fork"
    zarr.create_array(store, name="data", chunks=(1 << 18,), **SHARDED)
    process = processes.Process(target=cut_anew_and_die, args=(store.fork(), file))
    process.start()
    process.join()
    store.merge(pickle.loads(file.read_bytes()))
    store.commit("from one who is dead")
    assert Repository.open(tmp_path / "x.cas").verify(data=True).ok


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("swept", [False, True])
def test_a_collection_beside_forks(tmp_path: Path, swept: bool, others: bool) -> None:
    store = made(tmp_path / "x.cas")
    store.commit("nothing yet")
    zarr.create_array(store, name="unseen", shape=3, dtype="i4")
    unused, fork = (pickle.dumps(store.fork()) for _ in range(2))
    fork = pickle.dumps(write_rows(pickle.loads(fork), 0))
    if others:
        store.mapping["note"] = b"meanwhile"
    now = 2 * 10**15
    repo = Repository.open(tmp_path / "x.cas", read_only=False)

    def collected() -> None:
        none, day = timedelta(0), timedelta(days=1)
        collect(repo, log_age=none, max_unused=0, grace=day, clock=lambda: now)

    collected()
    if swept:
        now += 2 * 86400 * 10**6
        collected()
        with pytest.raises(StorageError, match=r"cannot begin: it is older than the grace time"):
            zarr.open_array(pickle.loads(unused), path="data")
    store.merge(pickle.loads(fork))
    if swept:
        with pytest.raises(StorageError, match="older than the grace time of a collection"):
            store.commit("too late")
        store.session.discard()
        zarr.open_array(store, path="data")[:8] = EXPECTED[:8]
    store.commit("rows")
    for _ in range(2):
        now += 2 * 86400 * 10**6
        collected()
    read = CASStore(tmp_path / "x.cas", version="main")
    np.testing.assert_array_equal(zarr.open_array(read, path="data", mode="r")[:8], EXPECTED[:8])
    assert Repository.open(tmp_path / "x.cas").verify(data=True).ok


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_long_values_and_arrays_without_dimensions(tmp_path: Path, zarr_format: Any) -> None:
    store, alone = CASStore(tmp_path / "x.cas"), CASStore(tmp_path / "alone.cas")
    shape = 4, 2 << 20
    for each in (store, alone):
        options: dict[str, Any] = {"zarr_format": zarr_format, "compressors": None}
        zarr.create_array(
            each, name="2020", shape=shape, chunks=(1, 2 << 20), dtype="u1", **options
        )
        zarr.create_array(each, name="one", shape=(), dtype="i4", **options)
    data = np.random.default_rng(0).integers(0, 255, shape, "u1")
    forks = [travelled(store.fork()) for _ in range(4)]
    for row, fork in enumerate(forks):
        zarr.open_array(fork, path="2020")[row] = data[row]
    zarr.open_array(forks[0], path="one")[...] = 7
    zarr.open_array(alone, path="2020")[:] = data
    zarr.open_array(alone, path="one")[...] = 7
    store.merge(*map(travelled, forks))
    assert store.flush() == alone.flush()


def test_a_fork_can_resize_delete_and_begin_anew(tmp_path: Path) -> None:
    store = CASStore(tmp_path / "x.cas")
    for name in "abc":
        zarr.create_array(store, name=name, shape=4, chunks=2, dtype="i4")[:] = 7
    forks = [travelled(store.fork()) for _ in range(3)]
    options: dict[str, Any] = {"shape": 6, "chunks": 3, "dtype": "f8", "overwrite": True}
    zarr.create_array(forks[0], name="a", **options)[:] = 2
    zarr.open_array(forks[1], path="b").resize(2)
    zarr.open_array(forks[2], path="c")[:2] = 0  # the fill value is not stored
    store.merge(*map(travelled, forks))
    assert zarr.open_array(store, path="a")[:].tolist() == [2.0] * 6
    assert zarr.open_array(store, path="b")[:].tolist() == [7, 7]
    assert {key for key in store.mapping if key.startswith(("b/c", "c/c"))} == {"b/c/0", "c/c/1"}
    fork = travelled(store.fork())
    zarr.open_group(fork, mode="w").create_array("z", shape=1, dtype="i4")
    store.merge(travelled(fork))
    assert set(store.mapping) == {"zarr.json", "z/zarr.json"}


def test_what_is_no_fork_is_refused(tmp_path: Path) -> None:
    store = made(tmp_path / "x.cas")
    wrong: Any
    for wrong in ([store.fork()], None, store):
        with pytest.raises(InvalidArgumentError, match="is no fork"):
            store.merge(wrong)


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
