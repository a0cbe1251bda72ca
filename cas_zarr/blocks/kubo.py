"""A Kubo node by its RPC, and the blocks that it holds as a block store.

Every request is a POST to ``/api/v0``. A lookup says ``offline=true``, so that a node answers for
itself and does not go looking among its peers. What it answers is compared by multihash: nodes keep
blocks under it, and give back CIDs of other codecs and bases than they were given.

Source: https://docs.ipfs.tech/reference/kubo/rpc/.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias
from urllib.parse import urlencode

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, BlockStore, checked
from cas_zarr.blocks.http import HttpClient, HttpStream
from cas_zarr.blocks.ipfsnode import IpfsNode, Pin, multihash_of, plain_url, put_options
from cas_zarr.blocks.waiting import map_waiting
from cas_zarr.cid import (
    RAW,
    BytesLike,
    CidBytes,
    CidLike,
    as_cid_bytes,
    encode_varint,
    format_cid,
)
from cas_zarr.codecs.car import encode_roots, section_head
from cas_zarr.errors import (
    BlockNotFoundError,
    CorruptBlockError,
    InvalidCIDError,
    ReadOnlyError,
    RemoteError,
)

__all__ = ["KuboBlocks", "KuboNode"]

_MAX_ANSWER = 1 << 20
_MAX_KEYS = 16 << 20
_PATIENCE = 3600.0  # of what a node answers only when it is done, whatever the size
_ABSENT = re.compile(r"could not find|not found locally|block not found", re.IGNORECASE)
_MISSING = re.compile(r"could not find (\w+)")
_THREADS = 16  # requests that are under way at once
_IMPORT_BYTES = 64 << 20
_Options: TypeAlias = dict[str, Any]


class KuboNode(IpfsNode):
    """A node that speaks the RPC of Kubo.

    Parameters
    ----------
    url : str
        Address of the RPC, ``http://127.0.0.1:5001``; not that of the gateway.
    token : str, optional
        What the RPC asks for: a bearer token, or with a space a whole ``Authorization``, as
        ``Basic dXNlcjpwYXNz``. It is sent to this address only.
    timeout : float
        Seconds that may pass without a byte of an answer.
    client : HttpClient, optional
        One that is shared with others.

    Examples
    --------
    >>> KuboNode("http://127.0.0.1:5001").version()  # doctest: +SKIP
    '0.43.1'
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 60.0,
        client: HttpClient | None = None,
    ) -> None:
        url = plain_url(url, "an ipfs node", "http://127.0.0.1:5001")
        self._url = url.removesuffix("/api/v0").rstrip("/")
        self._timeout = timeout
        self._client = client or HttpClient(timeout=timeout)
        self._headers: dict[str, str] = {}
        token = (token or "").strip()
        if token:
            self._headers["authorization"] = token if " " in token else f"Bearer {token}"
        self._lock = threading.Lock()
        self.requests = 0
        self.sent = 0

    def __repr__(self) -> str:
        return f"KuboNode({self._url!r})"

    # docstrings inherited

    @property
    def location(self) -> str:
        return self._url

    # -- blocks -----------------------------------------------------------------------------

    def block_get(self, cid: CidBytes) -> bytes | None:
        with self._stream("block/get", _local(cid), retry=True) as answer:
            if answer.status == 200:
                return answer.read_all(MAX_BLOCK_SIZE)
            error = self._error("block/get", answer.status, self._message(answer))
            if isinstance(error, BlockNotFoundError):
                return None
            raise error

    def block_size(self, cid: CidBytes) -> int | None:
        try:
            answer = self._ask("block/stat", _local(cid))
        except BlockNotFoundError:
            return None
        size = answer.get("Size")
        if type(size) is not int or size < 0:
            raise self._nonsense("block/stat", "it gives no size")
        return size

    def block_put(self, cid: CidBytes, data: BytesLike) -> None:
        head, tail, kind = _multipart()
        with self._stream(
            "block/put",
            put_options(cid) | {"pin": "false"},
            body=b"".join((head, data, tail)),
            content_type=kind,
            retry=True,
        ) as stream:
            answer = self._one(stream, "block/put")
        self._count(sent=len(data))
        if not _same(answer.get("Key"), cid):
            raise CorruptBlockError(
                f"block {format_cid(cid)} is damaged: {self._url} finds the cid "
                f"{str(answer.get('Key'))[:80]} for its bytes; run verify"
            )

    def block_rm(self, cid: CidBytes) -> None:
        answer = self._ask("block/rm", {"arg": format_cid(cid), "force": "true"})
        if error := answer.get("Error"):
            raise self._error("block/rm", 200, str(error))
        if not isinstance(answer.get("Hash"), str):
            raise self._nonsense("block/rm", "it names no block")

    def blocks(self) -> Iterator[CidBytes]:
        for line in self._lines("refs/local"):
            if line.get("Err"):
                raise self._error("refs/local", 200, str(line["Err"]))
            yield self._cid("refs/local", line.get("Ref"))

    def import_car(self, pieces: Iterable[bytes], *, pin_roots: bool = False) -> None:
        """Send a CAR in pieces.

        `pin_roots` lets the node pin the roots in its header: for services that offer no more
        than this one call.
        """
        head, tail, kind = _multipart()
        whole = done = False

        def body() -> Iterator[bytes]:
            nonlocal whole
            yield head
            for piece in pieces:
                self.sent += len(piece)  # one import at a time counts here: it is a generator
                yield piece
            yield tail
            whole = True

        with self._stream(
            "dag/import",
            {"pin-roots": str(pin_roots).lower(), "stats": "true", "allow-big-block": "true"},
            body=body(),
            content_type=kind,
            patience=max(self._timeout, 600.0),
        ) as stream:
            self._check(stream, "dag/import")
            for line in self._parsed(stream, "dag/import"):
                root = line.get("Root")
                if isinstance(root, dict) and root.get("PinErrorMsg"):
                    raise self._error("dag/import", 200, str(root["PinErrorMsg"]))
                if line.get("Message"):
                    raise self._error("dag/import", 200, str(line["Message"]))
                done |= isinstance(root if pin_roots else line.get("Stats"), dict)
        if not (done and whole):  # it gave up: where it began to answer, a trailer says why
            raise RemoteError(
                f"{self._url} broke off a dag/import and did not say why; look at its log, then "
                "try again"
            )

    # -- pins -------------------------------------------------------------------------------

    def pin_add(self, cid: CidBytes, *, name: str = "") -> None:
        options = {"arg": format_cid(cid), "offline": "true", "recursive": "true"}
        if name:
            options["name"] = name
        # Progress keeps bytes coming; where it breaks off, only an answer without it says why.
        with self._stream("pin/add", {**options, "progress": "true"}, retry=True) as stream:
            self._check(stream, "pin/add")
            if any(isinstance(line.get("Pins"), list) for line in self._parsed(stream, "pin/add")):
                return
        answer = self._ask("pin/add", options, patience=_PATIENCE)
        if not isinstance(answer.get("Pins"), list):
            raise self._nonsense("pin/add", "it names no pins")

    def pin_update(self, old: CidBytes, new: CidBytes) -> None:
        options = {"arg": (format_cid(old), format_cid(new)), "offline": "true", "unpin": "false"}
        answer = self._ask("pin/update", options, patience=_PATIENCE)
        if not isinstance(answer.get("Pins"), list):
            raise self._nonsense("pin/update", "it names no pins")

    def pin_rm(self, cid: CidBytes) -> None:
        try:
            answer = self._ask("pin/rm", {"arg": format_cid(cid), "recursive": "true"})
        except RemoteError as error:
            if "not pinned" not in str(error):
                raise
            return
        if not isinstance(answer.get("Pins"), list):
            raise self._nonsense("pin/rm", "it names no pins")

    def is_pinned(self, cid: CidBytes) -> bool:
        try:
            answer = self._ask("pin/ls", {"arg": format_cid(cid), "type": "recursive"})
        except BlockNotFoundError:
            return False
        except RemoteError as error:
            if "is not pinned" in str(error):
                return False
            raise
        found = answer.get("Keys")
        if not isinstance(found, dict):
            raise self._nonsense("pin/ls", "it names no pins")
        return any(_same(key, cid) for key in found)

    def pins(self) -> Iterator[Pin]:
        for line in self._lines("pin/ls", {"type": "recursive", "stream": "true", "names": "true"}):
            name = line.get("Name", "")
            yield Pin(self._cid("pin/ls", line.get("Cid")), name if isinstance(name, str) else "")

    # -- names ------------------------------------------------------------------------------

    def keys(self) -> dict[str, str]:
        answer = self._ask("key/list", {"ipns-base": "base36"}, limit=_MAX_KEYS)
        found = answer.get("Keys")
        if not isinstance(found, list):
            raise self._nonsense("key/list", "it lists no keys")
        return dict(self._key("key/list", entry) for entry in found)

    def key_gen(self, name: str) -> str:
        options = {"arg": name, "type": "ed25519", "ipns-base": "base36"}
        return self._key("key/gen", self._ask("key/gen", options, retry=False))[1]

    def name_publish(
        self, cid: CidBytes, key: str, *, lifetime: str | None = None, ttl: str | None = None
    ) -> str:
        options = {"arg": f"/ipfs/{format_cid(cid)}", "key": key, "ipns-base": "base36"}
        options |= {"allow-offline": "true", "resolve": "false"}
        options |= {} if lifetime is None else {"lifetime": lifetime}
        options |= {} if ttl is None else {"ttl": ttl}
        name = self._ask("name/publish", options, patience=max(self._timeout, 300.0)).get("Name")
        if not isinstance(name, str) or not name:
            raise self._nonsense("name/publish", "it gives no name")
        return name

    def name_resolve(self, name: str) -> str:
        found = self._ask("name/resolve", {"arg": name, "recursive": "true"}).get("Path")
        if not isinstance(found, str) or not found.startswith("/"):
            raise self._nonsense("name/resolve", "it gives no path")
        return found

    def version(self) -> str:
        found = self._ask("version").get("Version")
        if not isinstance(found, str):
            raise self._nonsense("version", "it names no version")
        return found

    # -- requests and answers ---------------------------------------------------------------

    def _count(self, *, sent: int = 0, requests: int = 0) -> None:
        with self._lock:
            self.sent += sent
            self.requests += requests

    def _stream(
        self,
        call: str,
        options: _Options,
        *,
        body: bytes | Iterable[bytes] | None = None,
        content_type: str | None = None,
        patience: float | None = None,
        retry: bool = False,
    ) -> AbstractContextManager[HttpStream]:
        """Make a request; with `retry` once more where a kept connection turned out closed."""
        headers = dict(self._headers)
        if content_type is not None:
            headers["content-type"] = content_type
        url = f"{self._url}/api/v0/{call}?{urlencode(options, doseq=True)}"
        wait = self._timeout if patience is None else patience
        self._count(requests=1)
        try:
            return self._client.stream("POST", url, headers=headers, body=body, timeout=wait)
        except RemoteError as error:
            if not retry or not isinstance(error.__cause__, ConnectionError):
                raise
            if isinstance(error.__cause__, ConnectionRefusedError):
                raise
        self._count(requests=1)
        return self._client.stream("POST", url, headers=headers, body=body, timeout=wait)

    def _ask(
        self,
        call: str,
        options: _Options | None = None,
        *,
        limit: int = _MAX_ANSWER,
        patience: float | None = None,
        retry: bool = True,
    ) -> dict[str, Any]:
        with self._stream(call, options or {}, patience=patience, retry=retry) as stream:
            return self._one(stream, call, limit)

    def _one(self, stream: HttpStream, call: str, limit: int = _MAX_ANSWER) -> dict[str, Any]:
        self._check(stream, call)
        return self._object(call, stream.read_all(limit))

    def _lines(self, call: str, options: _Options | None = None) -> Iterator[dict[str, Any]]:
        with self._stream(call, options or {}, retry=True) as stream:
            self._check(stream, call)
            yield from self._parsed(stream, call)

    def _parsed(self, stream: HttpStream, call: str) -> Iterator[dict[str, Any]]:
        for line in stream.lines(_MAX_ANSWER):
            if line.strip():
                yield self._object(call, line)
        if why := stream.trailers.get("x-stream-error"):  # what came is not all
            raise self._error(call, 200, why)

    def _object(self, call: str, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise self._nonsense(call, "it is no json") from None
        if not isinstance(value, dict):
            raise self._nonsense(call, "it is no json object")
        return value

    def _cid(self, call: str, text: object) -> CidBytes:
        try:
            return as_cid_bytes(text if isinstance(text, str) else "")
        except InvalidCIDError as error:
            raise self._nonsense(call, str(error)) from None

    def _key(self, call: str, entry: Any) -> tuple[str, str]:
        name, found = (
            (entry.get("Name"), entry.get("Id")) if isinstance(entry, dict) else (None, None)
        )
        if not isinstance(name, str) or not isinstance(found, str):
            raise self._nonsense(call, "a key has no name or no id")
        return name, found

    def _check(self, stream: HttpStream, call: str) -> None:
        if stream.status != 200:
            raise self._error(call, stream.status, self._message(stream))

    def _message(self, stream: HttpStream) -> str:
        """Return what a node says is wrong."""
        data = stream.read_all(_MAX_ANSWER)
        if "json" in stream.headers.get("content-type", ""):
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict) and isinstance(value.get("Message"), str):
                return self._without_token(value["Message"])
        return self._without_token(data.decode("utf-8", "replace"))[:500].strip()

    def _without_token(self, text: str) -> str:
        """Return what a server said without the token, which it may have said back."""
        _, _, token = self._headers.get("authorization", "").rpartition(" ")
        return text.replace(token, "(the token)") if token else text

    def _error(self, call: str, status: int, message: str) -> RemoteError | BlockNotFoundError:
        said = " ".join(self._without_token(message).split())[:500] or "without a reason"
        node_says = status in (200, 500)  # any other is that of a server before it
        if node_says and (missing := _MISSING.search(said)):
            return BlockNotFoundError(
                f"block {missing[1]} is not in {self._url} ({call}: {said}); publish it there"
            )
        if node_says and _ABSENT.search(said):
            return BlockNotFoundError(f"a block is not in {self._url} ({call}: {said})")
        if status in (401, 403):
            why = f"it refuses {call} (status {status}); give the token that its rpc asks for"
        elif status in (404, 405, 501):
            why = (
                f"it does not know {call} (status {status}): this is a gateway or another server; "
                "give the address of the node's rpc, which Kubo has at port 5001"
            )
        elif 300 <= status < 400:
            why = f"it sends {call} elsewhere (status {status}); give that address, maybe https://"
        elif "no space left" in said or "quota" in said.lower():
            why = f"it is full ({said}); let it collect its garbage, or raise its StorageMax"
        elif "hash function" in said or "insecure" in said or "multihash" in said:
            why = f"it refuses a hash ({said}); use a repository of sha2-256, or a newer node"
        else:
            why = f"{call} failed: {said}"
        return RemoteError(f"{self._url}: {why}", status=status)

    def _nonsense(self, call: str, why: str) -> RemoteError:
        return RemoteError(
            f"{self._url}: the answer to {call} is not that of an ipfs node: {why}; check the "
            "address"
        )


class KuboBlocks(BlockStore):
    """The blocks that a node holds itself.

    Nothing is asked of its peers, and nothing is pinned: what no pin leads to may be collected.

    Parameters
    ----------
    node : IpfsNode or str
        The node, or the address of its RPC.
    """

    remote = True

    def __init__(self, node: IpfsNode | str, *, read_only: bool = False) -> None:
        self.node = KuboNode(node) if isinstance(node, str) else node
        self.read_only = read_only

    # docstrings inherited

    @property
    def location(self) -> str:
        return self.node.location

    def list(self) -> Iterator[CidBytes]:
        """Yield the blocks of hashes that are known here, each as a node tells it: as raw."""
        for cid in self.node.blocks():
            try:
                yield checked(cid)
            except InvalidCIDError:
                continue

    def get_many(self, cids: Sequence[CidLike]) -> Sequence[bytes]:
        return map_waiting(self.get, cids, parallel=_THREADS)

    def has_many(self, cids: Sequence[CidLike]) -> Sequence[bool]:
        return map_waiting(self.has, cids, parallel=_THREADS)

    def put_many(self, blocks: Iterable[tuple[CidLike, BytesLike]]) -> None:
        """Hold many blocks, sent as CARs."""
        if self.read_only:
            raise ReadOnlyError(f"{self.location} is open for reading only")
        ahead = iter(blocks)
        for first in ahead:
            self.node.import_car(self._car(first, ahead))

    def _read(self, cid: CidBytes) -> bytes | None:
        return self.node.block_get(cid)

    def _write(self, cid: CidBytes, data: BytesLike) -> None:
        self.node.block_put(cid, data)

    def _has(self, cid: CidBytes) -> bool:
        return self.node.block_size(cid) is not None

    def _size(self, cid: CidBytes) -> int | None:
        return self.node.block_size(cid)

    def _delete(self, cid: CidBytes) -> None:
        self.node.block_rm(cid)

    def _car(
        self, first: tuple[CidLike, BytesLike], rest: Iterator[tuple[CidLike, BytesLike]]
    ) -> Iterator[bytes]:
        yield encode_roots(())
        size = 0
        item: tuple[CidLike, BytesLike] | None = first
        while item is not None:
            cid, data = checked(item[0]), bytes(item[1])
            if len(data) > MAX_BLOCK_SIZE:
                self.put(cid, data)  # says so
            # As raw: it is held under the multihash, and a node looks into what is dag-cbor.
            raw = CidBytes(b"\x01" + encode_varint(RAW) + multihash_of(cid))
            yield section_head(raw, len(data))
            yield data
            size += len(data)
            item = next(rest, None) if size < _IMPORT_BYTES else None


def _local(cid: CidBytes) -> _Options:
    return {"arg": format_cid(cid), "offline": "true"}


def _multipart() -> tuple[bytes, bytes, str]:
    """Return what stands before and behind a file in a form, and the type of the form."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return (
        head.encode(),
        f"\r\n--{boundary}--\r\n".encode(),
        f"multipart/form-data; boundary={boundary}",
    )


def _same(text: object, cid: CidBytes) -> bool:
    """Tell whether a CID that a node gave has the multihash of another."""
    try:
        found = as_cid_bytes(text if isinstance(text, str) else "")
    except InvalidCIDError:
        return False
    return multihash_of(found) == multihash_of(cid)
