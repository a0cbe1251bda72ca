"""Blocks in object storage where things go wrong on the way: nothing is lost, nor taken wrongly."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from cas_zarr.blocks.objects import open_object_store
from cas_zarr.blocks.objectstore import ObjectStoreBlocks
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of, format_cid
from cas_zarr.errors import BlockNotFoundError, CorruptBlockError, RemoteError, StorageError
from cas_zarr.testing.blocks import sample_blocks
from objects.faults import Faults
from objects.servers import BUCKET, SECRET, VersityGw

QUICK = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=10)}


@pytest.fixture
def direct(versitygw: VersityGw, prefix: str) -> ObjectStoreBlocks:
    """Return the place that `far` has, without the proxy."""
    return ObjectStoreBlocks(versitygw.store(), prefix)


@pytest.fixture
def options(faults: Faults, versitygw: VersityGw) -> dict[str, Any]:
    """Return options that lead through the proxy, and repeat quickly."""
    retry = {"max_retries": 4, "backoff": QUICK}
    return versitygw.options(endpoint=faults.url, retry_config=retry)


def _far(options: dict[str, Any], prefix: str, **changes: Any) -> ObjectStoreBlocks:
    return ObjectStoreBlocks(
        open_object_store(f"s3://{BUCKET}/{prefix}", **(options | changes)), parallel=8
    )


@pytest.fixture
def far(options: dict[str, Any], prefix: str) -> ObjectStoreBlocks:
    """Return a place behind the proxy."""
    return _far(options, prefix)


def _asked(faults: Faults) -> list[tuple[str, str]]:
    return [(request.method, request.condition) for request in faults.taken()]


def _block(size: int, seed: int = 0) -> tuple[CidBytes, bytes]:
    (data,) = sample_blocks(1, seed, largest=2).values()
    data = data * size
    return cid_of(RAW, BLAKE3, data), data


# -- what is asked ------------------------------------------------------------------------------


def test_a_small_block_costs_one_request_and_one_that_is_known_none(
    far: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(10)
    for round_ in range(3):
        far.put_many(blocks.items())
        far.flush()
        assert _asked(faults) == ([] if round_ else [("PUT", "*")] * 10)


def test_a_small_block_that_is_there_is_not_looked_for(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(10)
    direct.put_many(blocks.items())
    direct.flush()
    far.put_many(blocks.items())
    far.flush()
    assert _asked(faults) == [("PUT", "*")] * 10
    far.put_many(blocks.items())
    far.flush()
    assert _asked(faults) == []


def test_a_large_block_that_is_there_is_not_sent(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    cid, data = _block(1 << 20)
    direct.put(cid, data)
    direct.flush()
    far.put(cid, data)
    far.flush()
    assert _asked(faults) == [("HEAD", "")]
    other, data = _block(1 << 20, 1)
    far.put(other, data)
    far.flush()
    asked = _asked(faults)
    assert (asked[0], asked[-1]) == (("HEAD", ""), ("PUT", "*"))


def test_many_are_asked_for_at_once_and_none_twice(far: ObjectStoreBlocks, faults: Faults) -> None:
    blocks = sample_blocks(60)
    faults.latency = 0.01
    far.put_many(blocks.items())
    far.flush()
    faults.taken()
    assert 2 <= faults.busiest <= 8
    faults.busiest = 0
    cids = [*blocks, *blocks]
    assert list(far.get_many(cids)) == [blocks[cid] for cid in cids]
    assert _asked(faults) == [("GET", "")] * 60
    assert 2 <= faults.busiest <= 8
    faults.busiest = 0
    assert all(far.has_many(list(blocks)))
    assert _asked(faults) == [("HEAD", "")] * 60
    assert 2 <= faults.busiest <= 8


def test_a_put_does_not_wait_for_the_server(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(100)
    faults.always("stall")
    for cid, data in blocks.items():
        far.put(cid, data)
        assert far.get(cid) == data
        assert far.has(cid)
    faults.always()
    faults.released.set()
    far.flush()
    assert sorted(direct.list()) == sorted(blocks)


def test_a_list_asks_for_a_page_when_it_is_wanted(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(1100, largest=20)
    direct.put_many(blocks.items())
    direct.flush()
    listing = far.list()
    found = [next(listing)]
    assert _asked(faults) == [("GET", "")] * 2  # what was rescued from collections comes first
    found += listing
    assert _asked(faults) == [("GET", "")]
    assert sorted(found) == sorted(direct.list()) == sorted(blocks)


def test_blocks_are_deleted_by_one_request(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(50)
    direct.put_many(blocks.items())
    direct.flush()
    far.delete_many(list(blocks))
    assert _asked(faults) == [("POST", "")]
    assert list(direct.list()) == []


def _write_all(store: ObjectStoreBlocks, blocks: dict[CidBytes, bytes]) -> None:
    """Put blocks and flush them, again where something is told to have failed."""
    left = list(blocks.items())
    for attempt in range(50):
        try:
            while left:
                store.put(*left[-1])
                left.pop()
            return store.flush()
        except RemoteError:
            assert attempt < 49
    raise AssertionError("unreachable")


# -- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["slow", "broken", "cut", "lost", "conflict"])
def test_a_block_is_written_whatever_befalls_a_request(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults, fault: str
) -> None:
    cid, data = _block(1000)
    faults.script(fault)
    far.put(cid, data)
    far.flush()
    assert far.get(cid) == direct.get(cid) == data
    assert faults.taken()[0].fault == fault


def test_a_conflict_is_not_taken_for_a_block_that_is_there(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    cid, data = _block(1000)
    faults.always("conflict")
    far.put(cid, data)
    with pytest.raises(RemoteError, match=format_cid(cid)):
        far.flush()
    assert not direct.has(cid)
    faults.always()
    far.flush()  # what could not be written is written now
    assert direct.get(cid) == data


@pytest.mark.parametrize("fault", ["slow", "broken", "cut", "lost", "half", "wrong"])
def test_a_block_is_read_whatever_befalls_a_request(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults, fault: str
) -> None:
    cid, data = _block(100_000)
    direct.put(cid, data)
    direct.flush()
    for read in (far.get, lambda cid: far.get_many([cid])[0], lambda cid: far.get_held([cid])[cid]):
        faults.script(fault)
        assert read(cid) == data
        out = bytearray(len(data))
        faults.script(fault)
        far.read_into(cid, memoryview(out))
        assert out == data


def test_a_list_is_whole_whatever_befalls_its_requests(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(1100, largest=20)
    direct.put_many(blocks.items())
    direct.flush()
    for script in (["half"], ["none", "half"], ["slow", "none", "lost", "cut", "half"]):
        faults.script(*script)
        assert sorted(far.list()) == sorted(blocks)


def test_bytes_that_are_always_wrong_are_told_and_never_given(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(5)
    direct.put_many(blocks.items())
    direct.flush()
    faults.always("wrong")
    for cid in blocks:
        with pytest.raises(CorruptBlockError, match=format_cid(cid)):
            far.get(cid)
    assert far.get_held(list(blocks)) == {}


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_where_much_goes_wrong(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults, seed: int
) -> None:
    blocks = sample_blocks(200, seed, largest=20_000) | sample_blocks(4, 9, largest=1 << 20)
    faults.at_random(0.3, seed)
    _write_all(far, blocks)
    assert {cid: direct.get(cid) for cid in blocks} == blocks
    read: dict[CidBytes, bytes] = {}
    for _ in range(50):
        for cid in blocks.keys() - read.keys():
            try:
                read[cid] = far.get(cid)
            except RemoteError:
                continue
        if len(read) == len(blocks):
            break
    assert read == blocks
    assert {request.fault for request in faults.taken()} >= {"slow", "cut", "lost", "half"}


def test_a_flush_tells_that_blocks_are_not_there_and_the_next_one_writes_them(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(30)
    cids = list(blocks)
    faults.always("denied")
    far.put(cids[0], blocks[cids[0]])
    for _ in range(2):
        with pytest.raises(RemoteError, match=f"write .*{format_cid(cids[0])}.* denied"):
            far.flush()
    assert far.get(cids[0]) == blocks[cids[0]]  # it is kept meanwhile
    far.put(cids[1], blocks[cids[1]])  # who flushed knows
    with pytest.raises(RemoteError, match="denied"):
        far.flush()
    assert list(direct.list()) == []
    faults.always()
    far.put_many((cid, blocks[cid]) for cid in cids[2:])
    far.flush()
    assert sorted(direct.list()) == sorted(blocks)


def _put_until_told(store: ObjectStoreBlocks, blocks: list[tuple[CidBytes, bytes]]) -> None:
    for _ in range(1000):
        store.put_many(blocks)
        time.sleep(0.01)


def test_a_put_tells_that_an_earlier_block_is_not_there_and_tries_it_again(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    blocks = sample_blocks(20)
    left = list(blocks.items())
    faults.always("denied")
    with pytest.raises(RemoteError, match="denied"):
        _put_until_told(far, left)
    faults.always()
    _write_all(far, blocks)
    assert sorted(direct.list()) == sorted(blocks)


def test_a_block_that_could_not_be_written_can_be_forgotten(
    far: ObjectStoreBlocks, direct: ObjectStoreBlocks, faults: Faults
) -> None:
    cid, data = _block(10)
    faults.always("denied")
    far.put(cid, data)
    with pytest.raises(RemoteError):
        far.flush()
    faults.always()
    far.delete(cid)
    far.flush()
    assert not direct.has(cid)
    with pytest.raises(BlockNotFoundError):
        far.get(cid)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("slow", "slow down.*after several tries"),
        ("skewed", "clock of this machine"),
        ("expired", "credentials have expired"),
        ("denied", "access is denied"),
        ("broken", "status 500"),
        ("cut", "connection broke off"),
    ],
)
def test_each_failure_is_told_with_its_place_and_without_secrets(
    options: dict[str, Any], prefix: str, faults: Faults, fault: str, words: str
) -> None:
    token = "the-session-token-of-the-tests"
    far = _far(options, prefix, session_token=token)
    cid, data = _block(10)
    faults.always(fault)

    def write() -> None:
        far.put(cid, data)
        far.flush()

    for ask in (
        lambda: far.get(cid),
        lambda: far.has(cid),
        lambda: list(far.list()),
        lambda: far.delete(cid),
        write,
    ):
        with pytest.raises(RemoteError, match=words) as caught:
            ask()
        assert f"in s3://{BUCKET}/{prefix} at {faults.url}" in str(caught.value)
        told = "".join(traceback.format_exception(caught.value))
        assert token not in told
        assert SECRET not in told
        far._uploads.close()


def test_a_server_that_says_nothing_is_left_after_the_time_given(
    options: dict[str, Any], prefix: str, faults: Faults
) -> None:
    options = options | {"client_options": {"timeout": "200ms"}, "retry_config": {"max_retries": 1}}
    far = _far(options, prefix)
    faults.always("stall")
    cid, data = _block(10)
    with pytest.raises(RemoteError, match="no answer in time"):
        far.get(cid)
    far.put(cid, data)
    with pytest.raises(RemoteError, match="no answer in time"):
        far.flush()


def test_closing_does_not_wait_for_a_server_that_says_nothing(
    far: ObjectStoreBlocks, faults: Faults
) -> None:
    faults.always("stall")
    with far:
        far.put_many(sample_blocks(100).items())
        while not faults.busy:
            time.sleep(0.01)
    assert faults.busy


def test_a_forked_process_leaves_to_its_parent_what_is_on_its_way(
    far: ObjectStoreBlocks,
    direct: ObjectStoreBlocks,
    faults: Faults,
    forked: Callable[[Callable[[], object]], int],
) -> None:
    blocks = sample_blocks(30)
    faults.latency = 0.2
    far.put_many(blocks.items())

    def child() -> None:
        far.flush()
        far.put(*_block(10))
        with pytest.raises(StorageError, match="forked"):
            far.flush()
        far.close()

    assert forked(child) == 0
    far.flush()
    assert sorted(direct.list()) == sorted(blocks)


def test_a_server_that_goes_away_and_comes_back_has_all_that_was_flushed(
    versitygw: VersityGw, prefix: str
) -> None:
    retry = {"max_retries": 1, "backoff": QUICK}
    store = ObjectStoreBlocks(
        S3Store(
            BUCKET,
            prefix=prefix,
            client_options={"allow_http": True},
            **versitygw.options(retry_config=retry),
        )
    )
    first, second = sample_blocks(20, 1), sample_blocks(20, 2)
    store.put_many(first.items())
    store.flush()
    versitygw.stop()
    try:
        store.put(*next(iter(second.items())))
        with pytest.raises(RemoteError, match="cannot be reached"):
            store.flush()
    finally:
        versitygw.start()
    store.put_many(second.items())
    store.flush()
    names = obstore.list(versitygw.store(), prefix).collect()
    assert len(names) == 40
    assert list(store.get_many([*first, *second])) == [*first.values(), *second.values()]
