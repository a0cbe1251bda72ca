"""A node that answers wrongly: a clear error that names it and not its token, nothing accepted."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cas_zarr.blocks.kubo import KuboBlocks, KuboNode
from cas_zarr.cid import BLAKE3, RAW, cid_of, format_cid
from cas_zarr.codecs.car import encode_roots, section_head
from cas_zarr.errors import CasZarrError, CorruptBlockError, InvalidArgumentError, RemoteError

TOKEN = "a-secret-token"
DATA = b"some block"
CID = cid_of(RAW, BLAKE3, DATA)
OTHER = cid_of(RAW, BLAKE3, b"another")

Answer = tuple[int, bytes]
"""Status and body; a body that ends with ``...`` goes on until the client hangs up."""


@contextmanager
def node(answer: Answer) -> Iterator[KuboNode]:
    """Give a node that says one thing to all that it is asked."""
    status, body = answer

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            if body.startswith(b"{"):
                self.send_header("content-type", "application/json")
            self.end_headers()
            try:
                self.wfile.write(body.removesuffix(b"..."))
                while body.endswith(b"..."):
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield KuboNode(f"http://127.0.0.1:{server.server_port}", token=TOKEN, timeout=3.0)
    finally:
        server.shutdown()
        server.server_close()


def error(text: str) -> bytes:
    return json.dumps({"Message": text, "Code": 0, "Type": "error"}).encode()


LIES: dict[str, Answer] = {
    "html": (200, b"<html><body>It works!</body></html>"),
    "nothing": (200, b""),
    "another shape": (200, b'{"Key":7,"Size":"x","Keys":[1],"Name":[],"Value":{},"Pins":0}'),
    "a list": (200, b"[1,2,3]"),
    "not json": (200, b'{"Key":'),
    "deep": (200, b"[" * 100_000),
    "endless": (200, b'{"Key":"..."'[:8] + b"..."),
    "html 404": (404, b"404 page not found"),
    "error": (500, error("something else is wrong")),
    "error of no shape": (500, b'{"Message":{}}'),
    "full": (500, error("write /data/blocks: no space left on device")),
    "hash": (500, error("potentially insecure hash functions not allowed")),
    "token said back": (500, f"you sent Bearer {TOKEN}, {{}}".encode()),
    "token said back in json": (400, error(f"you sent {TOKEN}")),
    "no token": (401, b"401 Unauthorized"),
    "wrong token": (403, b"403 - Forbidden"),
    "other cid": (200, json.dumps({"Key": format_cid(OTHER), "Size": 10}).encode()),
}

CALLS: dict[str, Callable[[KuboNode], object]] = {
    "block_size": lambda node: node.block_size(CID),
    "blocks": lambda node: list(node.blocks()),
    "is_pinned": lambda node: node.is_pinned(CID),
    "block_put": lambda node: node.block_put(CID, DATA),
    "pin_add": lambda node: node.pin_add(CID),
    "pin_rm": lambda node: node.pin_rm(CID),
    "block_rm": lambda node: node.block_rm(CID),
    "pin_update": lambda node: node.pin_update(CID, OTHER),
    "pins": lambda node: list(node.pins()),
    "keys": lambda node: node.keys(),
    "key_gen": lambda node: node.key_gen("name"),
    "name_publish": lambda node: node.name_publish(CID, "name"),
    "name_resolve": lambda node: node.name_resolve("k51name"),
    "import_car": lambda node: node.import_car([encode_roots([]), section_head(CID, 10), DATA]),
    "version": lambda node: node.version(),
}


HONEST = {
    ("pins", "nothing"),  # a node without pins
    ("blocks", "nothing"),  # or without blocks
    ("block_size", "other cid"),  # only the size is asked
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_answer_is_an_error_that_names_the_node(call: str, lie: str) -> None:
    if (call, lie) in HONEST:
        return
    with node(LIES[lie]) as asked:
        with pytest.raises(CasZarrError) as caught:
            CALLS[call](asked)
        assert asked.location in str(caught.value)
        assert TOKEN not in f"{caught.value}{caught.value!r}{asked!r}{asked.location}"


@pytest.mark.parametrize("lie", ["no token", "wrong token"])
def test_a_token_that_is_missing_or_wrong_is_said(lie: str) -> None:
    with node(LIES[lie]) as asked, pytest.raises(RemoteError, match="token") as caught:
        asked.version()
    assert caught.value.status in (401, 403)


def test_a_full_disk_is_said() -> None:
    with (
        node(LIES["full"]) as asked,
        pytest.raises(RemoteError, match=r"it is full \(.*no space left"),
    ):
        asked.import_car([encode_roots([]), section_head(CID, 10), DATA])


@pytest.mark.parametrize(
    "reason",
    [
        "potentially insecure digests not allowed",
        "unrecognized hash function: blake3",
        "unknown multihash code 30",
    ],
)
def test_a_hash_that_is_refused_is_said(reason: str) -> None:
    with node((500, error(reason))) as asked, pytest.raises(RemoteError) as caught:
        asked.block_put(CID, DATA)
    assert f"refuses a hash ({reason})" in str(caught.value)
    assert "sha2-256" in str(caught.value)


def test_a_gateway_is_told_from_an_rpc() -> None:
    with node(LIES["html 404"]) as asked, pytest.raises(RemoteError, match="gateway") as caught:
        asked.version()
    assert "5001" in str(caught.value)


def test_a_put_that_finds_another_cid_is_refused() -> None:
    with node(LIES["other cid"]) as asked, pytest.raises(CorruptBlockError) as caught:
        asked.block_put(CID, DATA)
    assert format_cid(CID) in str(caught.value)
    assert format_cid(OTHER) in str(caught.value)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ("blocks", {"Ref": format_cid(OTHER), "Err": ""}),
        ("pins", {"Cid": format_cid(OTHER), "Name": "n"}),
    ],
)
def test_lines_that_are_cut_off_are_no_shorter_list(call: str, line: dict[str, str]) -> None:
    text = json.dumps(line).encode()
    with node((200, text + b"\n" + text + b"\n")) as asked:
        assert len(list(CALLS[call](asked))) == 2  # type: ignore[call-overload]
    for cut in (1, len(text) // 2, len(text) - 1):
        with node((200, text + b"\n" + text[:cut])) as asked, pytest.raises(RemoteError):
            CALLS[call](asked)


def test_a_block_that_is_another_is_refused() -> None:
    with node((200, b"another")) as asked, pytest.raises(CorruptBlockError, match=format_cid(CID)):
        KuboBlocks(asked).get(CID)


def test_an_endless_block_is_not_read_to_its_end() -> None:
    with node((200, b"...")) as asked, pytest.raises(RemoteError, match="bytes"):
        KuboBlocks(asked).get(CID)


def test_an_import_that_ends_without_its_last_line_did_not_happen() -> None:
    line = json.dumps({"Root": {"Cid": {"/": format_cid(CID)}, "PinErrorMsg": ""}}).encode()
    for body in (line + b"\n", line[:20], line + b"\n" + error("unexpected EOF")):
        with node((200, body)) as asked, pytest.raises(CasZarrError):
            asked.import_car([encode_roots([]), section_head(CID, 10), DATA])


@pytest.mark.parametrize(
    "url", ["http://user:pa55@127.0.0.1:5001", "http://x?key=pa55", "http://x#pa55", "u:pa55@x"]
)
def test_an_address_with_a_secret_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="token") as caught:
        KuboNode(url)
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "127.0.0.1:5001", "http://", "http://x:99999", "ftp://x", 5])
def test_what_is_no_address_is_told(url: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="no address of an ipfs node"):
        KuboNode(url)


@pytest.mark.parametrize("call", ["block_get", "block_size", "is_pinned", "pin_add", "import_car"])
def test_a_page_that_cannot_be_found_is_no_block(call: str) -> None:
    """A node says so with status 500; this comes from whatever stands before it."""
    calls = CALLS | {"block_get": lambda node: node.block_get(CID)}
    with node((404, b"<html>we could not find the page</html>")) as asked:
        with pytest.raises(RemoteError) as caught:
            calls[call](asked)
        assert caught.value.status == 404


def test_an_import_that_was_not_read_to_its_end_did_not_happen() -> None:
    """A server that answers at once that all is well, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        sock, _ = listener.accept()
        body = b'{"Stats":{"BlockCount":1,"BlockBytesCount":1}}\n'
        with sock:
            sock.recv(1 << 16)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    thread = threading.Thread(target=answer)
    thread.start()
    asked = KuboNode(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=3.0)
    blocks = [bytes(1 << 20)] * 64
    try:
        with pytest.raises(RemoteError, match="dag/import"):
            asked.import_car(blocks)
        assert asked.sent < 64 << 20
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    ("token", "sent"),
    [
        ("abc", "Bearer abc"),
        (" abc\n", "Bearer abc"),
        ("Basic abc=", "Basic abc="),
        (" ", None),
        (None, None),
    ],
)
def test_a_token_is_sent_as_the_rpc_wants_it(token: str | None, sent: str | None) -> None:
    shown: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            shown.append(self.headers.get("authorization"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"Version":"1"}')

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            KuboNode(f"http://127.0.0.1:{server.server_port}", token=token).version()
        finally:
            server.shutdown()
            thread.join()
    assert shown == [sent]


def test_a_token_that_no_header_can_hold_is_not_shown() -> None:
    for token in ("pa55\r\nx: y", "pa55ä"):
        with pytest.raises(InvalidArgumentError, match="header") as caught:
            KuboNode("http://127.0.0.1:1", token=token).version()
        assert "pa55" not in str(caught.value)


def test_an_address_that_leads_elsewhere_is_told() -> None:
    with node((301, b"<html>moved</html>")) as asked:
        with pytest.raises(RemoteError, match="https") as caught:
            asked.block_size(CID)
        assert caught.value.status == 301


def test_many_blocks_come_in_a_forked_process_too(
    forked: Callable[[Callable[[], object]], int],
) -> None:
    """Threads do not come along: who waits for those of the parent waits for ever."""
    with node((200, DATA)) as asked:
        blocks = KuboBlocks(asked)
        assert blocks.get_many([CID] * 100) == [DATA] * 100

        def child() -> None:
            assert blocks.get_many([CID] * 8) == [DATA] * 8

        assert forked(child) == 0
