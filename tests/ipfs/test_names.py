"""IPNS names between this package and a real node, in both directions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from running import Kubo

from cas_zarr.blocks.http import HttpClient
from cas_zarr.blocks.kubo import KuboNode
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of, format_cid
from cas_zarr.codecs.ipns import IpnsRecord, decode_record, encode_record, name_of, parse_name
from cas_zarr.errors import FormatError, InvalidArgumentError, NotFoundError, RemoteError
from cas_zarr.repository.ipns import own_name, publish_name, resolve_ipns, resolve_name

KEY = Ed25519PrivateKey.generate()
NAME = name_of(KEY.public_key().public_bytes_raw())
HOUR = 3600 * 10**9


def cid(text: str) -> CidBytes:
    return cid_of(RAW, BLAKE3, text.encode())


def path(text: str) -> str:
    return f"/ipfs/{format_cid(cid(text))}"


def record(value: str, sequence: int = 1, *, expires: int = HOUR) -> IpnsRecord:
    return IpnsRecord(value, time.time_ns() + expires, sequence, 10**9)


def signed(value: str, sequence: int = 1, *, expires: int = HOUR) -> bytes:
    return encode_record(record(value, sequence, expires=expires), KEY)


@pytest.fixture(scope="module")
def node(kubo: Kubo) -> KuboNode:
    return KuboNode(kubo.rpc)


@pytest.fixture
def gateway() -> Iterator[Callable[..., str]]:
    """Return a function that starts a gateway which answers everything alike."""
    servers = []

    def start(
        body: bytes = b"", *, status: int = 200, together: Barrier | None = None, **headers: str
    ) -> str:
        sent = {"content_type": "application/vnd.ipfs.ipns-record"} | headers

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if together is not None:
                    together.wait(10)  # for all others; without one of them nobody answers
                self.send_response(status)
                for key, value in sent.items():
                    self.send_header(key.replace("_", "-"), value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if self.command == "GET" else b"")

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


# -- a real node ------------------------------------------------------------------------------


def test_a_name_is_published_and_found(node: KuboNode, kubo: Kubo) -> None:
    key = f"names-{os.urandom(4).hex()}"
    name = publish_name(node, key, cid("one"), lifetime=timedelta(hours=1), ttl="30s")
    assert node.keys()[key] == name
    assert resolve_ipns(name, nodes=[node]) == path("one")
    found = resolve_name(f"ipns://{name}/a/b", gateways=[kubo.gateway])
    assert found.path == path("one") + "/a/b"
    assert found.verified
    assert found.ttl == 30 * 10**9
    assert found.expires is not None
    assert abs(found.expires - time.time_ns() - HOUR) < 600 * 10**9
    by_node = resolve_name(name, nodes=[node], gateways=["http://127.0.0.1:1"])
    assert (by_node.path, by_node.verified, by_node.source) == (path("one"), False, kubo.rpc)

    assert publish_name(node, key, cid("two")) == name
    again = resolve_name(name, gateways=[kubo.gateway])
    assert again.path == path("two")
    assert again.sequence == (found.sequence or 0) + 1


def test_a_key_that_another_process_makes_meanwhile_is_taken(kubo: Kubo) -> None:
    key = f"race-{os.urandom(4).hex()}"

    class Slow(KuboNode):
        """Before it answers that there is no such key, there is."""

        def keys(self) -> dict[str, str]:
            found = super().keys()
            if key not in found:
                KuboNode(kubo.rpc).key_gen(key)
            return found

    assert own_name(Slow(kubo.rpc), key) == KuboNode(kubo.rpc).keys()[key]


def test_what_is_no_key(node: KuboNode) -> None:
    for key in ("", "a/b", "x" * 300, "ä" * 128, "\udcff", "a\nb"):
        with pytest.raises(InvalidArgumentError):
            publish_name(node, key, cid("one"))
    with pytest.raises(InvalidArgumentError, match="no duration"):
        publish_name(node, "names", cid("one"), ttl="soon")


@pytest.mark.parametrize("legacy", [True, False])
def test_a_node_takes_a_record_made_here(kubo: Kubo, tmp_path: Path, legacy: bool) -> None:
    key = Ed25519PrivateKey.generate()
    name = name_of(key.public_key().public_bytes_raw())
    data = encode_record(record(path("mine"), 5), key, legacy=legacy)
    told = kubo.run("name", "inspect", "--verify", str(name), input=data)
    assert "Valid: true" in told.replace("  ", " ")
    assert "Sequence:       5" in told
    (tmp_path / "record").write_bytes(data)
    kubo.run("name", "put", "--allow-offline", str(name), str(tmp_path / "record"))
    assert kubo.run("name", "resolve", str(name)).strip() == path("mine")
    found = resolve_name(str(name), gateways=[kubo.gateway])
    assert (found.path, found.sequence, found.verified) == (path("mine"), 5, True)
    with HttpClient() as client:
        answer = client.request("GET", f"{kubo.gateway}/ipns/{name}?format=ipns-record")
    assert decode_record(answer.body, name).sequence == 5


def test_a_node_refuses_what_is_refused_here(kubo: Kubo) -> None:
    data = signed(path("mine"))
    other = name_of(bytes(32))
    told = kubo.run("name", "inspect", "--verify", str(other), input=data)
    assert "Valid: false" in told.replace("  ", " ")
    with pytest.raises(FormatError):
        decode_record(data, other)


def test_peer_ids_are_names(node: KuboNode, kubo: Kubo) -> None:
    peer = kubo.run("id", "-f", "<id>").strip()
    assert str(parse_name(peer)) == node.keys()["self"]


def test_nobody_knows_a_name(node: KuboNode, kubo: Kubo) -> None:
    unknown = name_of(os.urandom(32))
    with pytest.raises((NotFoundError, RemoteError), match="was not resolved"):
        resolve_ipns(str(unknown), nodes=[node], gateways=[kubo.gateway])


# -- gateways of all kinds --------------------------------------------------------------------


def test_the_newest_valid_record_wins(gateway: Callable[..., str]) -> None:
    old, new = gateway(signed(path("old"), 1)), gateway(signed(path("new"), 2))
    over = gateway(signed(path("over"), 3, expires=-1))
    forged = gateway(encode_record(record(path("bad"), 9), Ed25519PrivateKey.generate()))
    found = resolve_name(str(NAME), gateways=[old, over, forged, new + "/"])
    assert (found.path, found.source, found.sequence) == (path("new"), new, 2)
    assert resolve_ipns(str(NAME), gateways=[forged, old, gateway(b"", status=500)]) == path("old")
    # of the same number the one that lasts longer
    late = gateway(signed(path("late"), 2, expires=2 * HOUR))
    assert resolve_ipns(str(NAME), gateways=[late, new]) == path("late")


@pytest.mark.parametrize(
    ("body", "headers", "error", "reason"),
    [
        (signed(path("a"), expires=-1), {}, FormatError, "whoever has its key must publish"),
        (signed(path("a"))[:-1], {}, FormatError, "cannot be trusted"),
        (b"", {}, FormatError, "no signature"),
        (bytes(20_000), {}, RemoteError, "20000 bytes"),
        (b"<html>", {"content_type": "text/html"}, RemoteError, "no trustless gateway"),
        (b"", {"status": 404}, NotFoundError, "does not know"),
        (b"", {"status": 503}, RemoteError, "answered 503"),
        (b"", {"status": 302, "location": "http://127.0.0.2/"}, RemoteError, "another"),
        (signed("/ipfs/nonsense"), {}, FormatError, "no cid"),
        (signed(path("a") + "/../b"), {}, FormatError, "no path"),
        (signed(f"/ipns/{NAME}"), {}, FormatError, "a circle"),
        (signed("/ipns/-"), {}, FormatError, "no path"),
    ],
)
def test_a_gateway_that_cannot_be_trusted(
    gateway: Callable[..., str],
    body: bytes,
    headers: dict[str, Any],
    error: type[Exception],
    reason: str,
) -> None:
    url = gateway(body, **headers)
    with pytest.raises(error, match=reason):
        resolve_ipns(str(NAME), gateways=[url])


@pytest.mark.parametrize("behind", ["/a/\udcff", "/../a", "//a", "/a\0b", "/" + 5000 * "a"])
def test_a_node_that_leads_nowhere(behind: str) -> None:
    class Strange(KuboNode):
        def name_resolve(self, name: str) -> str:
            return path(name) + behind

    with pytest.raises(FormatError):
        resolve_ipns(str(NAME), nodes=[Strange("http://127.0.0.1:1")])


def test_a_name_that_leads_to_another(gateway: Callable[..., str]) -> None:
    key = Ed25519PrivateKey.generate()
    second = name_of(key.public_key().public_bytes_raw())
    first = signed(f"/ipns/{second}/sub", 4)
    last = encode_record(replace(record(path("end"), 1), ttl=5), key)
    found = resolve_name(f"{NAME}/leaf", gateways=[gateway(first), gateway(last)])
    assert found.path == path("end") + "/sub/leaf"
    assert found.verified
    assert (found.sequence, found.ttl) == (4, 5)


def test_domains_are_not_verified(gateway: Callable[..., str]) -> None:
    silent = gateway(b"")
    two = gateway(b"", x_ipfs_roots=f"{format_cid(cid('a'))},{format_cid(cid('b'))}")
    good = gateway(b"", x_ipfs_roots=format_cid(cid("site")))
    found = resolve_name("ipns://data.example.org/x", gateways=[silent, two, good])
    assert (found.path, found.verified, found.source) == (path("site") + "/x", False, good)
    with pytest.raises(FormatError, match="does not say what the domain"):
        resolve_ipns("data.example.org", gateways=[silent])
    with pytest.raises(NotFoundError, match="does not know the domain"):
        resolve_ipns("data.example.org", gateways=[gateway(status=404)])
    # by way of a signed record it is no more certain
    assert not resolve_name(
        str(NAME), gateways=[gateway(signed("/ipns/data.example.org")), good]
    ).verified


@pytest.mark.parametrize(
    "name", ["", "nothing", "a b.c", "k51", "../x", "ipns://", "a.b\n", "ä.de"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(FormatError):
        resolve_ipns(name, gateways=["http://127.0.0.1:1"])


def test_a_gateway_that_is_none_is_not_a_name_that_nobody_knows() -> None:
    for url in ("ftp://127.0.0.1", "http://user:pa55@127.0.0.1"):
        with pytest.raises(InvalidArgumentError) as caught:
            resolve_ipns(str(NAME), gateways=[url])
        assert "pa55" not in str(caught.value)


def test_gateways_are_asked_all_at_once(gateway: Callable[..., str]) -> None:
    """However few cores there are: silent ones must not wait for each other."""
    together = Barrier(16)
    urls = [gateway(signed(path("a"), number), together=together) for number in range(16)]
    assert resolve_name(str(NAME), gateways=urls).sequence == 15


def test_addresses_are_nodes_too(kubo: Kubo) -> None:
    key = f"address-{os.urandom(4).hex()}"
    name = publish_name(kubo.rpc, key, cid("one"))
    for nodes in (kubo.rpc, [kubo.rpc], [KuboNode(kubo.rpc)]):
        assert resolve_ipns(name, nodes=nodes) == path("one")
    with pytest.raises(InvalidArgumentError, match="no ipfs node"):
        resolve_ipns(name, nodes=[5])  # type: ignore[list-item]


def test_nobody_to_ask() -> None:
    with pytest.raises(InvalidArgumentError, match="give a node or a gateway"):
        resolve_ipns(str(NAME))
    with pytest.raises(RemoteError, match="was not resolved"):
        resolve_ipns(
            str(NAME), nodes=[KuboNode("http://127.0.0.1:1")], gateways=["http://127.0.0.1:1"]
        )
