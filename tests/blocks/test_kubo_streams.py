"""Answers of a node that break off: the reason, which stands behind the body, is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from servers.loopback import Scripted, Talk

from cas_zarr.blocks.kubo import KuboNode
from cas_zarr.cid import BLAKE3, RAW, cid_of, format_cid
from cas_zarr.codecs.car import encode_roots
from cas_zarr.errors import BlockNotFoundError, RemoteError

CID = cid_of(RAW, BLAKE3, b"some block")
NAME = format_cid(CID)


@contextmanager
def breaking_off(line: str, why: str) -> Iterator[KuboNode]:
    """Give a node that says one line, and then what went wrong."""

    def script(talk: Talk) -> None:
        talk.request()
        talk.send(
            b"HTTP/1.1 200 OK\r\nTrailer: X-Stream-Error\r\nTransfer-Encoding: chunked\r\n\r\n",
            f"{len(line) + 1:x}\r\n{line}\n\r\n0\r\nX-Stream-Error: {why}\r\n\r\n".encode(),
        )
        talk.hold()

    with Scripted(script) as server:
        yield KuboNode(server.url, timeout=5.0)


def test_a_list_that_breaks_off_is_none() -> None:
    for line, ask in (
        (f'{{"Ref":"{NAME}","Err":""}}', KuboNode.blocks),
        (f'{{"Cid":"{NAME}","Name":""}}', KuboNode.pins),
    ):
        node = breaking_off(line, "datastore closed")
        with node as asked, pytest.raises(RemoteError, match="failed: datastore closed"):
            list(ask(asked))


def test_an_import_that_breaks_off_says_why() -> None:
    node = breaking_off("{}", "write: no space left on device")
    with node as asked, pytest.raises(RemoteError, match=r"it is full .* StorageMax"):
        asked.import_car([encode_roots(())])


def test_a_pin_that_breaks_off_names_the_block() -> None:
    why = f"pin: block was not found locally (offline): ipld: could not find {NAME}"
    node = breaking_off('{"Progress":1}', why)
    with node as asked, pytest.raises(BlockNotFoundError, match=f"block {NAME} is not in"):
        asked.pin_add(CID)
