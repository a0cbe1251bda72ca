"""Shards behind a gateway: how few requests read them, and that a bad answer changes nothing."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import zarr

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.gateway import GatewayBlocks
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import format_cid
from cas_zarr.codecs.car import CarReader
from cas_zarr.errors import InvalidArgumentError
from cas_zarr.repository.publishing import publish
from cas_zarr.server.running import serve_in_thread
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.values import file_blocks, read_value

pytest.importorskip("aiohttp")

INNER = 16 << 10
ROWS = 4096  # of a shard: its file has five nodes in two levels

Spoil = Callable[[str, bytes], "bytes | None"]


class Relay:
    """Passes requests on to a gateway and counts them.

    Attributes
    ----------
    url : str
    targets : list of str
        Paths and queries, in the order in which they came.
    delay : float
        Seconds before each answer.
    spoil : callable
        Is given each target and its answer, and returns what is sent; None is an error 500.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.url = ""
        self.targets: list[str] = []
        self.delay = 0.0
        self.spoil: Spoil = lambda _, body: body
        self.sent = 0

    def taken(self) -> list[str]:
        """Return what was asked since the last time."""
        out, self.targets = self.targets, []
        return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """Give a repository of one shard of 64 MiB, cut at 4096 inner chunks, and a part of another."""
    folder = tmp_path_factory.mktemp("shards") / "a.cas"
    data = np.random.default_rng(0).integers(1, 255, (ROWS, INNER), "u1")
    with CASStore(folder) as store:
        group = zarr.create_group(store=store)
        for name, rows in (("long", ROWS), ("short", 128)):
            array = group.create_array(
                name,
                shape=(rows, INNER),
                shards=(rows, INNER),
                chunks=(1, INNER),
                dtype="u1",
                compressors=None,
            )
            array[:] = data[:rows]
        store.commit("shards")
    with Repository.open(folder, read_only=True) as found:
        yield found


@pytest.fixture(scope="module")
def near(shards: Repository) -> dict[str, np.ndarray[Any, Any]]:
    store = CASStore(shards, version="main")
    return {
        name: np.asarray(zarr.open_array(store, path=name, mode="r")[:])
        for name in ("long", "short")
    }


@pytest.fixture(scope="module", params=["ours", "kubo"])
def peer(request: pytest.FixtureRequest, shards: Repository) -> Iterator[str]:
    """Give the address of a gateway that has the shards: our own, and that of a node."""
    if request.param == "kubo":
        node = request.getfixturevalue("kubo")
        publish(shards, to=node.rpc)
        yield node.gateway
    else:
        with serve_in_thread(shards) as server:
            yield server.url


@pytest.fixture
def relay(peer: str) -> Iterator[Relay]:
    state = Relay(peer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            state.targets.append(self.path)
            time.sleep(state.delay)
            connection = http.client.HTTPConnection(state.upstream, timeout=60)
            connection.request("GET", self.path, headers={"accept": self.headers["accept"]})
            answer = connection.getresponse()
            whole = answer.read()
            connection.close()
            body = state.spoil(self.path, whole) if answer.status == 200 else whole
            self.send_response(answer.status if body is not None else 500)
            self.send_header("content-length", str(len(body or b"")))
            self.send_header("content-type", answer.headers["content-type"])
            self.end_headers()
            self.wfile.write(body or b"")
            state.sent += len(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of clients that went away."""

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def far(shards: Repository, relay: Relay, name: str = "long", **options: Any) -> zarr.Array[Any]:
    """Return an array that is read through a relay; the pages are here, and nothing of a shard."""
    root = shards.resolve("main").root
    assert root is not None
    options.setdefault("cache", False)
    store = CASStore(f"ipfs://{format_cid(root)}", gateways=relay.url, **options)
    array = zarr.open_array(store, path=name, mode="r")
    store.get_sync(f"{name}/c/9/9")  # is not there, but the pages are
    relay.taken()
    relay.sent = 0
    return array


def is_car(target: str) -> bool:
    return "format=car" in target


# -- how few requests ------------------------------------------------------------------------------


def test_an_inner_chunk_takes_two_requests_and_another_beside_it_one(
    shards: Repository, relay: Relay, near: dict[str, Any]
) -> None:
    array = far(shards, relay)
    np.testing.assert_array_equal(array[2000], near["long"][2000])
    first = relay.taken()
    assert len(first) == 2, first  # the index, and the chunk with the node above it
    assert all(map(is_car, first))
    assert relay.sent < 4 * (ROWS * 16 + INNER) + (64 << 10)
    np.testing.assert_array_equal(array[2010], near["long"][2010])
    second = relay.taken()
    assert len(second) == 1, second  # zarr reads the index anew; it is here
    np.testing.assert_array_equal(array[2000], near["long"][2000])
    assert relay.taken() == []


def test_chunks_apart_share_the_nodes_above_them(
    shards: Repository, relay: Relay, near: dict[str, Any]
) -> None:
    array = far(shards, relay)
    np.testing.assert_array_equal(array[5::256], near["long"][5::256])
    assert len(relay.taken()) <= 17 + 4
    assert relay.sent < 900_000  # with a node for each chunk it is 1.15 million


def test_a_whole_shard_takes_a_handful_of_requests(
    shards: Repository, relay: Relay, near: dict[str, Any]
) -> None:
    array = far(shards, relay)
    np.testing.assert_array_equal(array[:], near["long"])
    asked = relay.taken()
    assert len(asked) <= 6, asked
    assert relay.sent < 1.02 * near["long"].nbytes
    np.testing.assert_array_equal(array[:], near["long"])
    assert relay.taken() == []


def test_what_is_here_is_not_asked_for_again(
    shards: Repository, relay: Relay, near: dict[str, Any]
) -> None:
    array = far(shards, relay, "short")
    np.testing.assert_array_equal(array[60], near["short"][60])
    relay.taken()
    relay.sent = 0
    np.testing.assert_array_equal(array[:], near["short"])
    asked = relay.taken()
    assert len(asked) == 2, asked  # what lies before and behind
    assert all(map(is_car, asked))
    assert relay.sent < near["short"].nbytes + (64 << 10)


def test_a_prefetch_takes_a_handful_of_requests(
    shards: Repository, relay: Relay, near: dict[str, Any], tmp_path: Path
) -> None:
    array = far(shards, relay, cache=tmp_path / "cache")
    store = array.store
    assert isinstance(store, CASStore)
    assert store.prefetch("long").complete
    assert len(relay.taken()) <= 6
    np.testing.assert_array_equal(array[:], near["long"])
    assert relay.taken() == []


# -- gateways that do not do it, or not well -------------------------------------------------------


def test_a_gateway_without_cars_is_asked_for_blocks(
    shards: Repository, relay: Relay, near: dict[str, Any]
) -> None:
    array = far(shards, relay, "short")
    relay.spoil = lambda target, body: None if is_car(target) else body
    np.testing.assert_array_equal(array[60], near["short"][60])
    np.testing.assert_array_equal(array[:], near["short"])
    asked = relay.taken()
    assert sum(map(is_car, asked)) == 1, asked  # and then no more for a while


def test_a_car_that_breaks_off_counts_as_far_as_it_came(
    shards: Repository, relay: Relay, near: dict[str, Any]
) -> None:
    array = far(shards, relay, "short")
    relay.spoil = lambda target, body: body[: len(body) // 2] if is_car(target) else body
    np.testing.assert_array_equal(array[:], near["short"])
    assert len([target for target in relay.taken() if not is_car(target)]) < 80  # of 129


@pytest.mark.parametrize("name", ["short", "long"])
def test_a_wrong_block_of_a_car_is_refused_and_asked_for_again(
    shards: Repository, relay: Relay, near: dict[str, Any], name: str
) -> None:
    def flipped(target: str, body: bytes) -> bytes:
        if not is_car(target):
            return body
        at = len(body) - 100  # in the last leaf, or the index
        return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]

    array = far(shards, relay, name)
    relay.spoil = flipped
    np.testing.assert_array_equal(array[77], near[name][77])


def test_a_gateway_that_sends_whole_files_is_hung_up_on(
    shards: Repository, relay: Relay, near: dict[str, Any], peer: str
) -> None:
    whole: dict[str, bytes] = {}

    def all_of_it(target: str, body: bytes) -> bytes:
        path, mark, _ = target.partition("&entity-bytes")
        if not mark:
            return body
        if path not in whole:
            connection = http.client.HTTPConnection(urlsplit(peer).netloc, timeout=60)
            connection.request("GET", path, headers={"accept": "application/vnd.ipld.car"})
            whole[path] = connection.getresponse().read()
            connection.close()
        return whole[path]

    array = far(shards, relay)
    relay.spoil = all_of_it
    np.testing.assert_array_equal(array[4000], near["long"][4000])
    assert sum(map(is_car, relay.taken())) == 1  # and is asked for blocks from then on


# -- what a gateway is asked for -------------------------------------------------------------------


def test_a_range_of_a_file_comes_with_the_nodes_above_it(shards: Repository, peer: str) -> None:
    mapping = CASStore(shards, version="main").mapping
    cid, size = mapping.cid_of("long/c/0/0"), mapping.size_of("long/c/0/0")
    assert cid is not None
    assert size is not None
    here = TreeReader(shards.blocks)
    with GatewayBlocks(peer) as gateway:
        for start, stop in ((0, 1), (INNER - 1, INNER + 1), (size - 5, size), (5 << 20, 6 << 20)):
            came = MemoryBlocks()
            came.put_many(gateway.fetch_car(cid, scope="entity", part=(start, stop)))
            found = read_value(TreeReader(came), cid, size, start, stop)
            assert bytes(found) == bytes(read_value(here, cid, size, start, stop))
            assert len(list(came.list())) < len(set(file_blocks(here, cid, size))) // 10
        for scope, part in (("all", (0, 1)), ("entity", (1, 1)), ("entity", (-1, 5))):
            with pytest.raises(InvalidArgumentError, match="no range of bytes"):
                gateway.fetch_car(cid, scope=scope, part=part)


def test_a_peer_counts_negative_bytes_from_the_end(shards: Repository, peer: str) -> None:
    mapping = CASStore(shards, version="main").mapping
    cid = mapping.cid_of("long/c/0/0")
    assert cid is not None
    connection = http.client.HTTPConnection(urlsplit(peer).netloc, timeout=60)
    target = f"/ipfs/{format_cid(cid)}?format=car&dag-scope=entity&entity-bytes=-16384:*"
    connection.request("GET", target, headers={"accept": "application/vnd.ipld.car"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert len(list(CarReader(answer))) < 8
    connection.close()
