"""The node behind an `ipfshttpclient.Client`: a real client, and a real node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from running import Kubo

from cas_zarr import Repository
from cas_zarr.blocks.ipfsclient import ClientNode, as_node
from cas_zarr.blocks.ipfsnode import Pin
from cas_zarr.blocks.kubo import KuboNode
from cas_zarr.cid import BLAKE3, DAG_CBOR, RAW, SHA256, CidBytes, Link, cid_of, format_cid
from cas_zarr.codecs import dagcbor
from cas_zarr.codecs.car import encode_roots, section_head
from cas_zarr.codecs.ipns import parse_name
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    InvalidArgumentError,
    NotFoundError,
    RemoteError,
    StorageError,
)
from cas_zarr.repository.publishing import publish
from cas_zarr.repository.unpublishing import unpublish

ipfshttpclient = pytest.importorskip("ipfshttpclient")

# The client gives urllib3 an argument that it warns about, whenever it makes a pool.
pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")


def client_of(url: str, **options: Any) -> Any:
    parts = urlsplit(url)
    return ipfshttpclient.Client(f"/ip4/{parts.hostname}/tcp/{parts.port}/http", **options)


@pytest.fixture(scope="module")
def node(kubo: Kubo) -> Iterator[ClientNode]:
    with client_of(kubo.rpc, timeout=30) as client:
        found = as_node(client)
        assert isinstance(found, ClientNode)
        yield found


@pytest.fixture
def block() -> tuple[CidBytes, bytes]:
    data = os.urandom(100)
    return cid_of(RAW, BLAKE3, data), data


def car(*blocks: tuple[CidBytes, bytes], roots: tuple[CidBytes, ...] = ()) -> Iterator[bytes]:
    yield encode_roots(roots)
    for cid, data in blocks:
        yield section_head(cid, len(data))
        yield data


def test_blocks(node: ClientNode, block: tuple[CidBytes, bytes]) -> None:
    cid, data = block
    assert node.block_get(cid) is None
    assert node.block_size(cid) is None
    node.block_put(cid, data)
    assert node.block_get(cid) == data
    assert node.block_size(cid) == len(data)
    assert cid in set(node.blocks())
    for function in (BLAKE3, SHA256):
        page = dagcbor.encode({"a": Link(cid)})
        node.block_put(cid_of(DAG_CBOR, function, page), page)
        assert node.block_get(cid_of(DAG_CBOR, function, page)) == page
    with pytest.raises(CorruptBlockError, match=format_cid(cid)):
        node.block_put(cid, b"other")
    with pytest.raises(InvalidArgumentError, match="no method for it"):
        node.block_rm(cid)


def test_a_car_and_pins(node: ClientNode, block: tuple[CidBytes, bytes]) -> None:
    cid, data = block
    page = dagcbor.encode({"a": Link(cid)})
    root = cid_of(DAG_CBOR, BLAKE3, page)
    node.import_car(car((root, page)))
    with pytest.raises(BlockNotFoundError, match="lacks a block"):
        node.pin_add(root)
    assert not node.is_pinned(root)
    sent = node.sent
    node.import_car(car((cid, data)))
    assert node.sent > sent + len(data)
    node.pin_add(root, name="cas_zarr test")
    assert Pin(root, "cas_zarr test") in set(node.pins())
    assert node.is_pinned(root)
    assert not node.is_pinned(cid)  # only by way of the other

    newer = dagcbor.encode({"a": Link(cid), "b": 1})
    second = cid_of(DAG_CBOR, BLAKE3, newer)
    with pytest.raises(BlockNotFoundError):
        node.pin_update(root, second)
    node.import_car(car((second, newer)))
    node.pin_update(root, second)
    assert node.is_pinned(root)
    assert node.is_pinned(second)
    for _ in range(2):  # the second time there is nothing to do
        node.pin_rm(root)
        node.pin_rm(second)
    assert not node.is_pinned(root)


def test_a_large_car_goes_in_pieces(node: ClientNode) -> None:
    blocks = [(cid_of(RAW, BLAKE3, data), data) for data in (os.urandom(1 << 20) for _ in range(4))]
    node.import_car(car(*blocks))
    assert [node.block_get(cid) for cid, _ in blocks] == [data for _, data in blocks]


def test_a_broken_car(node: ClientNode, block: tuple[CidBytes, bytes]) -> None:
    cid, data = block
    with pytest.raises(RemoteError, match="refuses the import of a car"):
        node.import_car(iter([b"nonsense"]))
    with pytest.raises(RemoteError, match="refuses the import of a car") as refused:
        node.import_car(car((cid, data + b"!")))
    assert refused.value.status is not None  # it has answered: the same again is of no use

    for failure in (CorruptBlockError("block of mine is damaged"), StorageError("disk of mine")):

        def torn(failure: Exception = failure) -> Iterator[bytes]:
            yield from car((cid, data))
            raise failure

        with pytest.raises(type(failure), match="of mine") as caught:
            node.import_car(torn())
        assert caught.value is failure  # not what the client makes of an OSError


def test_keys_and_names(node: ClientNode, block: tuple[CidBytes, bytes]) -> None:
    cid, data = block
    node.block_put(cid, data)
    name = node.key_gen(f"client-{cid.hex()[-8:]}")
    assert str(parse_name(name)) == name
    assert node.keys()[f"client-{cid.hex()[-8:]}"] == name
    said = node.name_publish(cid, f"client-{cid.hex()[-8:]}", lifetime="1h", ttl="10s")
    assert said == name
    assert node.name_resolve(name) == f"/ipfs/{format_cid(cid)}"
    with pytest.raises(RemoteError, match="under the key 'nothing'"):
        node.name_publish(cid, "nothing")
    assert node.version().startswith("0.")


def test_nobody_there_and_something_else_there(kubo: Kubo) -> None:
    nobody = ClientNode(client_of("http://127.0.0.1:1", timeout=2))
    with pytest.raises(RemoteError, match="does not answer"):
        nobody.version()
    with pytest.raises(RemoteError, match="does not answer"):
        nobody.import_car(iter([b"a"]))
    gateway = ClientNode(client_of(kubo.gateway, timeout=5))
    for call in (gateway.version, gateway.keys, gateway.pins):
        with pytest.raises(RemoteError, match="address of"):
            call()
    with pytest.raises(RemoteError) as caught:
        gateway.import_car(car())
    assert caught.value.status in (404, 405)  # it does not know that, and blocks may do


def test_what_means_a_node(kubo: Kubo, node: ClientNode) -> None:
    parts = urlsplit(kubo.rpc)
    for address in (
        kubo.rpc,
        f"/ip4/127.0.0.1/tcp/{parts.port}",
        f"/dns4/localhost/tcp/{parts.port}/http",
    ):
        found = as_node(address)
        assert isinstance(found, KuboNode)
        assert found.version() == node.version()
    assert as_node("/ip6/::1/tcp/5001").location == "http://[::1]:5001"
    assert as_node(node) is node
    for wrong in ("/ip4/127.0.0.1", "/onion/x/tcp/1", "nonsense", 5, None):
        with pytest.raises(InvalidArgumentError):
            as_node(wrong)
    with pytest.raises(InvalidArgumentError, match="not with a client"):
        as_node(node, token="secret")


def test_two_nodes_are_two_places(kubo: Kubo, node: ClientNode, tmp_path: Path) -> None:
    """A client does not tell its address: what is noted of one node is not that of the other."""
    second = Kubo(kubo.program, tmp_path / "second")
    second.start()
    try:
        with client_of(second.rpc) as client, Repository.memory() as repo:
            session = repo.session()
            session.prepare()["note"] = os.urandom(20)
            session.commit("first")
            root = publish(repo, to=node).cid
            other = as_node(client)
            assert node.place != other.place
            with pytest.raises(NotFoundError, match="known to have been published"):
                unpublish(repo, other, version="main")
            publish(repo, to=client)
            assert unpublish(repo, client, version="main").unpinned
            assert not other.is_pinned(root)
            assert node.is_pinned(root)
            assert unpublish(repo, node, version="main").unpinned
            assert not node.is_pinned(root)
    finally:
        second.stop()
