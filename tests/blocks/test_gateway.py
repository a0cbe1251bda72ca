"""Gateways that are honest, and those that are not: nothing wrong gets through, all is bounded."""

from __future__ import annotations

import random
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers.certificates import Authority
from servers.lying import LIES, LyingGateway

from cas_zarr.blocks import health
from cas_zarr.blocks.base import MAX_BLOCK_SIZE
from cas_zarr.blocks.gateway import GatewayBlocks
from cas_zarr.blocks.http import HttpClient
from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_PB,
    RAW,
    SHA256,
    CidBytes,
    Link,
    cid_of,
    digest_of,
    format_cid,
)
from cas_zarr.codecs import dagcbor
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    InvalidArgumentError,
    InvalidCIDError,
    ReadOnlyError,
    RemoteError,
)
from cas_zarr.testing.blocks import sample_blocks

DATA = random.Random(5).randbytes(3000)
CID = cid_of(RAW, BLAKE3, DATA)
CARS = {"foreign car", "dripped car", "padded car", "short car", "truncated car", "wrong car"}
BLOCK_LIES = sorted(LIES.keys() - CARS)

Start = Callable[..., LyingGateway]


@pytest.fixture
def gateway() -> Iterator[Start]:
    """Start gateways that end with the test."""
    with ExitStack() as stack:

        def start(*args: object, **options: object) -> LyingGateway:
            server = stack.enter_context(LyingGateway(*args, **options))  # type: ignore[arg-type]
            # a port comes again, and what is remembered of it was of another server
            health.health_of(f"{server.url}/ipfs/{{cid}}").forget()
            return server

        yield start


def opened(*gateways: LyingGateway, **options: float) -> GatewayBlocks:
    return GatewayBlocks([each.url for each in gateways], **options)  # type: ignore[arg-type]


# -- honest -----------------------------------------------------------------------------------


def test_blocks_come_verified_and_connections_are_kept(gateway: Start) -> None:
    sizes = (0, 1, 1000, 70_000, 1 << 20, MAX_BLOCK_SIZE)
    contents = [random.Random(size).randbytes(size) for size in sizes]
    blocks = {cid_of(RAW, how, data): data for data in contents for how in (BLAKE3, SHA256)}
    server = gateway(blocks)
    with opened(server) as store:
        for cid, data in blocks.items():
            assert store.get(cid) == data
            assert store.has(cid)
            assert store.size(cid) == len(data)
            out = bytearray(len(data))
            store.read_into(cid, memoryview(out))
            assert out == data
    assert server.connections == 1
    asked = server.requests[0]
    assert asked.target == f"/ipfs/{format_cid(next(iter(blocks)))}?format=raw"
    assert asked.headers["accept"] == "application/vnd.ipld.raw"
    assert asked.headers["accept-encoding"] == "identity"


def test_many_blocks_come_in_order_many_at_once(gateway: Start) -> None:
    blocks = sample_blocks(96)
    server = gateway(blocks, delay=0.1)
    cids = list(blocks) + list(blocks)[:5]
    with opened(server) as store:
        began = time.monotonic()
        assert list(store.get_many(cids)) == [*blocks.values(), *list(blocks.values())[:5]]
        assert time.monotonic() - began < 96 * 0.1 / 4
        assert len(server.requests) == 96  # a CID that was wanted twice is asked for once
        missing = cid_of(RAW, BLAKE3, b"missing")
        assert list(store.has_many([missing, *cids[:3]])) == [False, True, True, True]
        with pytest.raises(BlockNotFoundError, match=format_cid(missing)):
            store.get_many([*cids[:40], missing])
        assert list(store.get_many([])) == []


def test_what_no_gateway_has_is_not_found(gateway: Start) -> None:
    first, second = gateway(), gateway()
    with opened(first, second) as store:
        with pytest.raises(BlockNotFoundError, match=format_cid(CID)) as caught:
            store.get(CID)
        assert first.url in str(caught.value)
        assert second.url in str(caught.value)
        assert not store.has(CID)
        with pytest.raises(BlockNotFoundError):
            store.size(CID)
        with pytest.raises(BlockNotFoundError):
            store.read_into(CID, memoryview(bytearray(5)))
        with pytest.raises(ReadOnlyError):
            store.put(CID, DATA)
        with pytest.raises(ReadOnlyError):
            store.delete(CID)
        assert list(store.list()) == []
        with pytest.raises(InvalidCIDError):
            store.get(CidBytes(b"\x01\x55\x00\x01x"))


def test_a_cid_of_version_0_is_asked_for_as_version_1(gateway: Start) -> None:
    data = b"\x0a\x00"
    newer = cid_of(DAG_PB, SHA256, data)
    server = gateway({newer: data})
    with opened(server) as store:
        assert store.get(CidBytes(b"\x12\x20" + digest_of(newer))) == data
    assert format_cid(newer) in server.requests[0].target


def test_threads_that_want_one_block_ask_once(gateway: Start) -> None:
    server = gateway({CID: DATA}, delay=0.3)
    with opened(server) as store, ThreadPoolExecutor(12) as pool:
        assert list(pool.map(store.get, [CID] * 12)) == [DATA] * 12
        assert len(server.requests) == 1
        assert store.get(CID) == DATA
        assert len(server.requests) == 2


def test_a_child_has_connections_of_its_own(
    gateway: Start, forked: Callable[[Callable[[], object]], int]
) -> None:
    server = gateway(sample_blocks(8))
    cids = list(server.blocks)
    with opened(server) as store:
        store.get(cids[0])

        def child() -> None:
            assert list(store.get_many(cids)) == list(server.blocks.values())

        assert forked(child) == 0
        before = server.connections
        assert before > 1
        assert store.get(cids[1]) == server.blocks[cids[1]]
        assert server.connections == before


# -- not honest -------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", BLOCK_LIES)
def test_of_a_gateway_that_lies_nothing_is_accepted(gateway: Start, lie: str) -> None:
    server = gateway({CID: DATA}, lie)
    began = time.monotonic()
    tracemalloc.start()
    with opened(server, timeout=2.0) as store:
        with pytest.raises((RemoteError, CorruptBlockError)) as caught:
            store.get(CID)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - began < 4
    assert peak < 48 << 20  # the server is in this process, with a bomb of 32 MiB
    told = str(caught.value)
    assert server.url in told
    assert format_cid(CID) in told
    assert any(word in told for word in ("check", "give", "try", "trust", "use", "within"))
    assert server.sent < 32 << 20


@pytest.mark.parametrize("lie", BLOCK_LIES)
def test_beside_a_gateway_that_lies_the_next_one_is_asked(gateway: Start, lie: str) -> None:
    liar, honest = gateway({CID: DATA}, lie), gateway({CID: DATA})
    began = time.monotonic()
    with opened(liar, honest, timeout=10.0) as store:
        assert store.get(CID) == DATA
        assert liar.requests
        assert list(store.get_many([CID])) == [DATA]
        assert store.has(CID)
    assert time.monotonic() - began < 4


def test_what_a_gateway_calls_its_answer_cannot_change_a_terminal(gateway: Start) -> None:
    with opened(gateway({CID: DATA}, "escapes")) as store:
        with pytest.raises(CorruptBlockError) as caught:
            store.get(CID)
        assert str(caught.value).isprintable()
        with pytest.raises(RemoteError) as refused:
            list(store.fetch_car(CID))
    assert str(refused.value).isprintable()


def test_bytes_that_are_wrong_are_told_from_an_answer_that_fails(gateway: Start) -> None:
    wrong, broken = gateway({CID: DATA}, "wrong"), gateway({CID: DATA}, "broken")
    with opened(wrong) as store, pytest.raises(CorruptBlockError, match="not the block"):
        store.get(CID)
    with opened(broken) as store, pytest.raises(RemoteError, match="500"):
        store.get(CID)
    with opened(wrong, gateway()) as store, pytest.raises(CorruptBlockError):
        store.read_into(CID, memoryview(bytearray(len(DATA))))


def test_a_gateway_that_fails_for_a_moment_is_asked_again(gateway: Start) -> None:
    for lie in ("broken", "closes", "truncated", "busy"):
        server = gateway({CID: DATA}, lie, times=1)
        began = time.monotonic()
        with opened(server) as store:
            assert store.get(CID) == DATA
        assert len(server.requests) == 2
        assert (time.monotonic() - began > 0.9) == (lie == "busy")  # as it asked


def test_a_gateway_that_asks_for_an_hour_is_left_alone(gateway: Start) -> None:
    server = gateway({CID: DATA}, "busy for long", times=1)
    with opened(server) as store:
        for _ in range(3):
            with pytest.raises(RemoteError, match=r"left alone for 3\d\d\d s"):
                store.get(CID)
    with opened(server) as store, pytest.raises(RemoteError):  # as other stores know
        store.get(CID)
    assert len(server.requests) == 1


def test_a_gateway_that_was_left_alone_is_not_said_to_be_silent(gateway: Start) -> None:
    busy, gone = gateway({CID: DATA}, "busy for long", times=1), gateway()
    down = gateway({CID: DATA}, "closes")
    with opened(busy) as store, pytest.raises(RemoteError):
        store.get(CID)
    for other in (gone, down):
        with opened(busy, other, timeout=5.0) as store:
            for ask in (store.get, lambda cid, store=store: list(store.fetch_car(cid))):
                with pytest.raises(RemoteError, match=r"left alone for 3\d\d\d s") as caught:
                    ask(CID)
                assert f"{busy.url}: it asks to be left alone" in str(caught.value)
                assert "within" not in str(caught.value)
    assert len(busy.requests) == 1


def test_threads_that_want_one_block_wait_for_it_no_longer_than_one(gateway: Start) -> None:
    server = gateway({CID: DATA}, "silent")
    with opened(server, timeout=0.7) as store, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(store.get, CID) for _ in range(8)]
        for each in asked:
            with pytest.raises(RemoteError, match=format_cid(CID)):
                each.result(20)
    assert len(server.requests) == 1  # and nobody waits for as long again


def test_a_silent_gateway_is_overtaken_over_tls_too(gateway: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    silent = gateway({CID: DATA}, "silent", context=authority.server())
    honest = gateway({CID: DATA}, context=authority.server())
    with (
        HttpClient(context=authority.client()) as client,
        GatewayBlocks([silent.url, honest.url], client=client, timeout=20.0) as store,
    ):
        assert store.get(CID) == DATA
    assert silent.requests


def test_a_silent_gateway_is_overtaken_and_asked_last(gateway: Start) -> None:
    silent, honest = gateway({CID: DATA}, "silent"), gateway(sample_blocks(20) | {CID: DATA})
    with opened(silent, honest) as store:
        began = time.monotonic()
        assert store.get(CID) == DATA
        first = time.monotonic() - began
        assert health.FIRST_CONTACT - 0.1 < first < health.FIRST_CONTACT + 1
        began = time.monotonic()
        for cid in honest.blocks:
            store.get(cid)
        assert time.monotonic() - began < 1
    assert len(silent.requests) == 1
    with opened(silent, honest, hedge=False, timeout=1.5) as store:
        assert store.get(CID) == DATA


def test_slow_gateways_are_not_all_asked_twice(gateway: Start) -> None:
    blocks = sample_blocks(300)
    first, second = gateway(blocks), gateway(blocks)
    with opened(first, second) as store:
        store.get_many(list(blocks))
        first.delay = second.delay = 0.4
        store.get_many(list(blocks))
    assert len(first.requests) + len(second.requests) <= 600 + 30 + 16


def test_local_and_quick_gateways_are_asked_first(gateway: Start) -> None:
    slow, quick = gateway({CID: DATA}, delay=0.15), gateway({CID: DATA})
    for server in (slow, quick):
        with opened(server) as store:
            store.get(CID)
    with opened(slow, quick) as store:
        for _ in range(5):
            store.get(CID)
    assert len(slow.requests) == 1
    far, near = health.Health("http://192.0.2.1"), health.Health("http://127.0.0.1:1")
    assert health.in_order([far, near]) == [near, far]
    near.failed(time.monotonic())
    assert health.in_order([near, far]) == [far, near]


def test_a_child_does_not_wait_for_what_another_thread_held(
    forked: Callable[[Callable[[], object]], int],
) -> None:
    server = health.health_of("http://192.0.2.9/ipfs/{cid}")

    def child() -> None:
        signal.alarm(10)  # ends a child that waits for ever
        server.answered(0.1)
        assert not server.doubtful

    with server._lock:
        assert forked(child) == 0


def test_failures_side_by_side_count_once() -> None:
    server = health.Health("http://192.0.2.7")
    began = time.monotonic()
    for _ in range(40):
        server.failed(began)
    assert server.doubtful
    time.sleep(0.3)
    assert not server.doubtful


def test_a_block_has_a_deadline_whatever_gateways_do(gateway: Start) -> None:
    servers = [gateway({CID: DATA}, lie) for lie in ("silent", "trickle", "trickling head")]
    with opened(*servers, timeout=1.5) as store:
        began = time.monotonic()
        with pytest.raises(RemoteError, match=format_cid(CID)):
            store.get(CID)
        assert time.monotonic() - began < 2.5
    threads = [each for each in threading.enumerate() if each.name == "cas-zarr-hedge"]
    for each in threads:
        each.join(3)
        assert not each.is_alive()


def test_addresses_that_are_none_are_refused() -> None:
    for url in ("", "ftp://x", "127.0.0.1:8080", "http://{cid}.ipfs.host", "http://h/?a=b",
                "http://u:secret@host", "http://h/ipfs/{cid}/{cid}", "http://h/a b"):  # fmt: skip
        with pytest.raises(InvalidArgumentError) as caught:
            GatewayBlocks(url)
        assert "secret" not in str(caught.value)
    for url in ("http://h/ipfs?key=secret", "http://h/ {cid}?key=secret", "x://u:secret@h/{cid}"):
        with pytest.raises(InvalidArgumentError) as caught:
            GatewayBlocks(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(InvalidArgumentError):
        GatewayBlocks([])
    store = GatewayBlocks(["http://localhost:80/", "https://h/ipfs", "https://h/x/ipfs/{cid}"])
    assert store.urls == (
        "http://127.0.0.1:80/ipfs/{cid}",
        "https://h/ipfs/{cid}",
        "https://h/x/ipfs/{cid}",
    )


def test_nobody_listening_is_said_at_once() -> None:
    with GatewayBlocks("http://127.0.0.1:9") as store:
        began = time.monotonic()
        with pytest.raises(RemoteError, match="nothing listens there"):
            store.get(CID)
        assert time.monotonic() - began < 2


# -- CARs -------------------------------------------------------------------------------------


def tree(count: int = 20) -> dict[CidBytes, bytes]:
    """Return a DAG, its root first."""
    leaves = {cid_of(RAW, BLAKE3, b"leaf %d" % i): b"leaf %d" % i for i in range(count)}
    root = dagcbor.encode({"links": [Link(cid) for cid in leaves]})
    return {cid_of(DAG_CBOR, BLAKE3, root): root, **leaves}


def test_a_car_brings_what_a_block_links(gateway: Start) -> None:
    blocks = tree()
    server = gateway(blocks)
    root = next(iter(blocks))
    with opened(server) as store:
        assert dict(store.fetch_car(root)) == blocks
        assert dict(store.fetch_car(format_cid(root), scope="entity", path="a b/c")) == blocks
        with pytest.raises(BlockNotFoundError):
            list(store.fetch_car(CID))
        with pytest.raises(InvalidArgumentError):
            store.fetch_car(root, scope="everything")
        first = iter(store.fetch_car(root))
        assert next(first)[0] == root
        first.close()  # type: ignore[attr-defined]
        assert dict(store.fetch_car(root)) == blocks
    assert server.requests[0].target == f"/ipfs/{format_cid(root)}?format=car&dag-scope=all"
    assert "order=dfs; dups=n" in server.requests[0].headers["accept"]
    assert server.requests[1].target.partition("?")[0].endswith("/a%20b/c")
    assert server.requests[1].target.endswith("dag-scope=entity")


@pytest.mark.parametrize("lie", ["truncated car", "short car", "wrong car", "foreign car"])
def test_of_a_car_that_ends_badly_the_sound_blocks_come_first(gateway: Start, lie: str) -> None:
    blocks = tree()
    server = gateway(blocks, lie)
    got: dict[CidBytes, bytes] = {}
    error = CorruptBlockError if lie == "wrong car" else RemoteError
    with opened(server, gateway(blocks), hedge=False) as store:
        coming = store.fetch_car(next(iter(blocks)))
        with pytest.raises(error) as caught:
            got.update(coming)
    assert server.url in str(caught.value)
    assert got.items() <= blocks.items()
    assert len(got) == len(blocks) - (lie != "foreign car")
    assert server.sent < 1 << 20


def test_a_gateway_that_is_silent_about_a_car_is_left_in_time(gateway: Start) -> None:
    blocks = tree()
    silent = gateway(blocks, "silent")
    began = time.monotonic()
    with opened(silent, gateway(blocks), timeout=0.5) as store:
        assert dict(store.fetch_car(next(iter(blocks)))) == blocks
    assert time.monotonic() - began < 15  # the client alone would wait for a minute
    assert len(silent.requests) == 1


def test_a_car_of_another_version_is_refused_before_its_padding(gateway: Start) -> None:
    server = gateway(tree(), "padded car")
    with opened(server) as store, pytest.raises(RemoteError, match="version 2"):
        list(store.fetch_car(next(iter(tree()))))
    assert server.sent < 16 << 20


def test_a_car_that_comes_in_small_pieces_is_read(gateway: Start) -> None:
    blocks = tree(3)
    server = gateway(blocks, "dripped car")
    with opened(server) as store:
        assert dict(store.fetch_car(next(iter(blocks)))) == blocks


@pytest.mark.parametrize("lie", sorted(LIES.keys() - CARS - {"trickle", "silent", "continues"}))
def test_where_no_car_comes_the_next_gateway_is_asked(gateway: Start, lie: str) -> None:
    blocks = tree()
    liar, honest = gateway(blocks, lie), gateway(blocks)
    client = HttpClient(timeout=0.5)
    with client, GatewayBlocks([liar.url, honest.url], client=client) as store:
        assert dict(store.fetch_car(next(iter(blocks)))) == blocks
    assert liar.requests
