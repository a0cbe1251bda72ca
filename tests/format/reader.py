"""A reader of format version 1, written from docs/format.md alone: nothing of cas_zarr is in it.

It takes the blocks of a dataset as a dict of CID text to bytes, and gives its keys and values.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b32decode, b64decode
from collections.abc import Iterator
from typing import Any

import blake3


class Dataset:
    """All keys of the root `cid`; every block is verified before it is used."""

    def __init__(self, blocks: dict[str, bytes], cid: str) -> None:
        self.blocks = blocks
        self.root = self.json(cid)
        header = self.root["header"]
        assert header["type"] == "cas-zarr/root"
        assert header["version"] == 1
        assert not header.get("needs")

    def block(self, cid: str) -> bytes:
        data = self.blocks[cid]
        binary = b32decode(cid[1:].upper() + "=" * (-len(cid[1:]) % 8))
        code, digest = binary[-34], binary[-32:]
        hashed = {0x1E: lambda: blake3.blake3(data).digest()}.get(
            code, lambda: hashlib.sha256(data).digest()
        )()
        assert binary[-33] == 32
        assert hashed == digest, f"{cid} is damaged"
        return data

    def json(self, cid: str) -> Any:
        return json.loads(self.block(cid))

    # -- keys -------------------------------------------------------------------------------

    def items(self) -> dict[str, bytes]:
        return dict(self.node_items("", self.root))

    def node_items(self, path: str, node: Any) -> Iterator[tuple[str, bytes]]:
        for name, document in node.get("docs", {}).items():
            yield path + name, self.document(document)
        for form, tree in node.get("trees", {}).items():
            yield from self.tree_items(path, form, tree)
        yield from self.entries(path, node)

    def entries(self, path: str, node: Any) -> Iterator[tuple[str, bytes]]:
        for name, value in node.get("keys", {}).items():
            yield path + name, self.value(value["cid"]["/"], value["size"])
        for name, child in node.get("nodes", {}).items():
            yield from self.node_items(f"{path}{name}/", child)
        for shard in node.get("shards", []):
            yield from self.entries(path, self.shard(shard))

    def shard(self, ref: Any) -> Any:
        shard = self.json(ref["cid"]["/"])
        assert shard["header"] == {"type": "cas-zarr/shard", "version": 1}
        for name in (*shard.get("keys", {}), *shard.get("nodes", {})):
            bits = f"{int.from_bytes(blake3.blake3(name.encode()).digest(), 'big'):0256b}"
            assert bits.startswith(ref["bits"])
        return shard

    def document(self, document: Any) -> bytes:
        if isinstance(document, str):
            return document.encode()
        if "/" in document:
            return unbase64(document["/"]["bytes"])
        return self.value(document["cid"]["/"], document["size"])

    # -- values -----------------------------------------------------------------------------

    def value(self, cid: str, size: int) -> bytes:
        binary = b32decode(cid[1:].upper() + "=" * (-len(cid[1:]) % 8))
        data = self.block(cid)
        if binary[1] == 0x70:
            links, sizes = dag_pb_file(data)
            data = b"".join(self.value(*pair) for pair in zip(links, sizes, strict=True))
        assert len(data) == size
        return data

    # -- chunk trees ------------------------------------------------------------------------

    def tree_items(self, path: str, form: str, tree: Any) -> Iterator[tuple[str, bytes]]:
        kind, ndim = form.rstrip("0123456789"), int(form.lstrip("c./") or 0)
        top = tree["top"]
        page = cbor(self.block(top["/"])) if "/" in top else plain(top)
        chunks = list(self.page_items(page, 0, None))
        assert len(chunks) == tree["chunks"]
        assert sum(size for _, _, size in chunks) == tree["bytes"]
        for code, cid, size in chunks:
            coordinates = [0] * ndim
            for position in range(code.bit_length()):
                bit, rest = divmod(position, ndim)
                coordinates[ndim - 1 - rest] |= (code >> position & 1) << bit
            numbers = kind[-1:].join(map(str, coordinates))
            name = {"c": "c", "c/": f"c/{numbers}", "c.": f"c.{numbers}"}.get(kind, numbers)
            yield path + name, self.value(cid, size)

    def page_items(
        self, page: dict[str, Any], low: int, level: int | None
    ) -> Iterator[tuple[int, str, int]]:
        assert page["type"] == "cas-zarr/page"
        assert page["version"] == 1
        assert level is None or page["level"] == level
        n = len(page["links"])
        codes, sizes = column(page["codes"], n), column(page["sizes"], n)
        for code, link, size in zip(codes, page["links"], sizes, strict=True):
            if page["level"] == 0:
                yield low + code, link, size
            else:
                child = cbor(self.block(link))
                yield from self.page_items(child, low + code, page["level"] - 1)


def signed_by(block: bytes) -> bytes | None:
    """Return the public key that signed a commit; None if it is not signed, or not by that key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = cbor(block).get("signature", b"")
    if len(signature) != 96:
        return None
    assert block[0] == 0xA9
    key = Ed25519PublicKey.from_public_bytes(signature[:32])
    try:
        key.verify(signature[32:], b"\xa8" + block[1:-108])
    except InvalidSignature:
        return None
    return bytes(signature[:32])


def plain(page: dict[str, Any]) -> dict[str, Any]:
    """Return a page that stands in a document as if it had been a block."""
    out: dict[str, Any] = {}
    for name, value in page.items():
        if isinstance(value, list):
            out[name] = [link["/"] for link in value]
        else:
            out[name] = unbase64(value["/"]["bytes"]) if isinstance(value, dict) else value
    return out


def unbase64(text: str) -> bytes:
    return b64decode(text + "=" * (-len(text) % 4))


def column(raw: bytes, n: int) -> list[int]:
    width = len(raw) // max(n, 1)
    return [int.from_bytes(raw[i * width : (i + 1) * width], "little") for i in range(n)]


def cbor(data: bytes) -> Any:
    """Decode the part of DAG-CBOR that pages and commits use."""

    def item(at: int) -> tuple[Any, int]:
        major, extra, at = data[at] >> 5, data[at] & 31, at + 1
        if extra > 23:
            width = 1 << extra - 24
            extra, at = int.from_bytes(data[at : at + width], "big"), at + width
        if major == 0:
            return extra, at
        if major in (2, 3):
            raw = data[at : at + extra]
            return (raw if major == 2 else raw.decode()), at + extra
        if major == 4:
            values = []
            for _ in range(extra):
                value, at = item(at)
                values.append(value)
            return values, at
        if major == 5:
            pairs = {}
            for _ in range(extra):
                key, at = item(at)
                pairs[key], at = item(at)
            return pairs, at
        assert (major, extra) == (6, 42)
        raw, at = item(at)
        return text_of(raw[1:]), at

    return item(0)[0]


def text_of(cid: bytes) -> str:
    from base64 import b32encode

    return "b" + b32encode(cid).decode().lower().rstrip("=")


def protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value, at

    at = 0
    while at < len(data):
        head, at = varint(at)
        value, at = varint(at)
        if head & 7 == 2:
            yield head >> 3, data[at : at + value]
            at += value
        else:
            yield head >> 3, value


def dag_pb_file(data: bytes) -> tuple[list[str], list[int]]:
    links, sizes = [], []
    for field, value in protobuf(data):
        if field == 2:
            links.append(text_of(dict(protobuf(value))[1]))
        else:
            sizes = [size for number, size in protobuf(value) if number == 4]
    return links, sizes
