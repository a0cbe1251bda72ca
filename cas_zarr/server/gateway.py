"""What the gateway answers: from a request to status, headers and bytes, without any HTTP library.

All of it is synchronous and runs in the threads of `cas_zarr.server.app`. The body of an answer is
bytes, or pieces that are made as they are sent: what fails then must cut the connection, so that
nobody takes a part for the whole.

Source: Trustless and Path Gateway specifications, https://specs.ipfs.tech/http-gateways/.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlencode

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    CidBytes,
    as_cid_bytes,
    codec_of,
    format_cid,
)
from cas_zarr.codecs.car import encode_roots, section_head
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    CorruptBlockError,
    InvalidArgumentError,
    InvalidCIDError,
    InvalidKeyError,
    NotFoundError,
    StorageError,
    VersionNotFoundError,
)
from cas_zarr.repository.remotes import local_blocks
from cas_zarr.repository.webrefs import describe_refs
from cas_zarr.server.content import Target, Versions, follow, media_type, pieces_of
from cas_zarr.server.dags import Recorder, dag_blocks, entity_blocks
from cas_zarr.server.listing import listing
from cas_zarr.server.negotiation import (
    RAW_TYPE,
    Asked,
    CarOptions,
    Format,
    HttpError,
    byte_range,
    car_options,
    choose_format,
    matches_etag,
)
from cas_zarr.tree.directories import is_inline, read_block
from cas_zarr.tree.keys import DOCUMENTS

if TYPE_CHECKING:
    from cas_zarr.repository.repository import Repository

__all__ = ["Gateway", "Reply"]

IMMUTABLE: Final = "public, max-age=29030400, immutable"
MUTABLE: Final = "public, max-age=2"
MAX_PATH: Final = 4096
_PIECE: Final = 1 << 18
_MAX_FILENAME = 200
_PLAIN: Final = {0x200: "application/json", 0x51: "application/cbor"}  # bytes, as raw ones are

_log = logging.getLogger("cas_zarr.server")

_ABOUT = """cas_zarr gateway, for reading only

/ipfs/<cid>[/<path>]       blocks (?format=raw), CARs (?format=car), files, keys of datasets
/zarr/<version>/<key>      a branch or a tag, for any Zarr reader over HTTP
/cas-zarr/repository.json  where branches and tags are
"""


@dataclass(slots=True)
class Reply:
    """An answer: `body` is bytes, or pieces that are made as they are sent.

    Attributes
    ----------
    length : int or None
        Bytes of the body where they are known before they are made; also of one that HEAD leaves
        out.
    """

    status: int
    headers: dict[str, str]
    body: bytes | memoryview | Iterator[bytes | memoryview] = b""
    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is None and isinstance(self.body, (bytes, memoryview)):
            self.length = len(self.body)


class Gateway:
    """Answers requests from the blocks and refs of a repository; never changes it.

    Parameters
    ----------
    repo : Repository
    fetch : bool
        Of a partial clone: whether to fetch what is asked for and not here. By default strangers
        cannot make this repository ask others, nor grow.
    """

    def __init__(self, repo: Repository, *, fetch: bool = False) -> None:
        self._repo = repo
        self._fetch = fetch
        self._versions = Versions(repo.hash)

    @property
    def blocks(self) -> BlockStore:
        """Where blocks are read."""
        blocks = self._repo.blocks
        return blocks if self._fetch else local_blocks(blocks)

    def answer(self, asked: Asked) -> Reply:
        """Return the answer to a request; errors are answers as well."""
        try:
            return self._answer(asked)
        except HttpError as error:
            return _refusal(error)
        except CasZarrError as error:
            return self.failed(error)

    def failed(self, error: CasZarrError) -> Reply:
        """Return the answer where an error stopped it; what it says is meant for anybody."""
        if isinstance(error, BlockNotFoundError):
            return _refusal(HttpError(404, "a block that this leads to is not here"))
        if isinstance(error, NotFoundError):
            return _refusal(HttpError(404, "there is nothing of that name"))
        if isinstance(error, (InvalidCIDError, InvalidKeyError, InvalidArgumentError)):
            return _refusal(HttpError(400, f"bad request: {str(error)[:200]}"))
        _log.warning("%s", error)
        if isinstance(error, CorruptBlockError):
            return _refusal(HttpError(500, "a block that this leads to is damaged; run verify"))
        if isinstance(error, StorageError):
            text = "a block that this leads to is not here, or cannot be read; the log says which"
            return _refusal(HttpError(502, text))
        return _refusal(HttpError(500, "what this leads to cannot be read as what it says"))

    def _answer(self, asked: Asked) -> Reply:
        if len(asked.path) > MAX_PATH:
            raise HttpError(414, f"the path has more than {MAX_PATH} bytes")
        segments = [_unquoted(segment) for segment in asked.path.split("/")[1:]]
        match segments:
            case ["ipfs", cid, *path] if cid:
                return self._ipfs(asked, cid, path)
            case ["zarr", version, *path] if version and path:
                return self._zarr(asked, version, "/".join(path))
            case ["cas-zarr", "repository.json"]:
                return self._repository(asked)
            case ["ipns", *_]:
                raise HttpError(404, "names of ipns are not resolved here; ask for /ipfs/<cid>")
            case [""]:
                headers = {"Content-Type": "text/plain; charset=utf-8"}
                return Reply(200, headers, _ABOUT.encode())
        raise HttpError(404, "there is nothing here; see / for what there is")

    # -- /cas-zarr and /zarr ------------------------------------------------------------------

    def _repository(self, asked: Asked) -> Reply:
        data, etag = describe_refs(self._repo.refs, self._repo.function)
        headers = {
            "Content-Type": "application/json",
            "Cache-Control": "no-cache",
            "Etag": etag,
        }
        return Reply(304, headers) if matches_etag(asked, etag) else Reply(200, headers, data)

    def _zarr(self, asked: Asked, version: str, key: str) -> Reply:
        with _all_here():
            try:
                root = self._versions.root_named(self._repo.refs, self.blocks, version)
            except VersionNotFoundError:
                # whoever has read its documents already must not take this for an empty chunk
                status = 404 if key.rpartition("/")[2] in DOCUMENTS else 410
                raise HttpError(status, "there is no such version") from None
            target = self._versions.key(self.blocks, root, key)
        if target is None:
            raise HttpError(404, "this version has no such key")
        headers = {"Cache-Control": MUTABLE, "X-Ipfs-Roots": format_cid(root)}
        return self._bytes(asked, target, key, headers)

    # -- /ipfs --------------------------------------------------------------------------------

    def _ipfs(self, asked: Asked, text: str, path: list[str]) -> Reply:
        try:
            cid = as_cid_bytes(text)
        except InvalidCIDError:
            raise HttpError(400, f"{text[:100]!r} is no cid") from None
        if asked.headers.get("service-worker", "").strip() == "script":
            raise HttpError(400, "no service worker is registered here")
        wanted, parameters = choose_format(asked)
        negotiated = "format" not in asked.query
        names = path[:-1] if path and not path[-1] else path
        if not all(names):
            raise HttpError(400, "a path has no empty names")
        self._look(asked, cid, below=bool(names) and wanted not in ("raw", "car"))
        headers = {"Cache-Control": IMMUTABLE, "X-Ipfs-Path": asked.path}
        if negotiated:
            headers["Vary"] = "Accept"
        if negotiated and wanted in ("raw", "car"):
            query = urlencode({**asked.query, "format": wanted})
            headers["Content-Location"] = f"{asked.path}?{query}"
        if wanted == "raw":
            return self._raw(asked, cid, names, headers)
        if wanted == "car":
            return self._car(asked, cid, names, car_options(asked, parameters), headers)
        return self._content(asked, cid, names, wanted, headers, slash=names is not path)

    def _look(self, asked: Asked, cid: CidBytes, *, below: bool = False) -> None:
        """Refuse a CID that cannot be checked, or whose block is not here."""
        cached = "only-if-cached" in asked.headers.get("cache-control", "").lower()
        blocks = local_blocks(self._repo.blocks) if cached else self.blocks
        if not is_inline(cid) and not blocks.has(cid):
            if cached:
                raise HttpError(412, "the block is not here")
            raise HttpError(502 if below else 404, f"block {format_cid(cid)} is not here")

    def _raw(self, asked: Asked, cid: CidBytes, names: list[str], headers: dict[str, str]) -> Reply:
        if names:
            cid = follow(self._versions, self.blocks, cid, names).block
        etag = f'"{format_cid(cid)}.raw"'
        headers |= _attachment(asked, f"{format_cid(cid)}.bin")
        headers |= {"Content-Type": RAW_TYPE, "Etag": etag, "X-Ipfs-Roots": format_cid(cid)}
        if matches_etag(asked, etag):
            return Reply(304, headers)
        if asked.head:
            here = is_inline(cid)
            size = len(read_block(self.blocks, cid)) if here else self.blocks.size(cid)
            return _ranged(asked, headers, size, etag, lambda _start, _stop: b"")
        data = read_block(self.blocks, cid)
        whole = memoryview(data)
        return _ranged(asked, headers, len(data), etag, lambda start, stop: whole[start:stop])

    def _car(
        self,
        asked: Asked,
        cid: CidBytes,
        names: list[str],
        options: CarOptions,
        headers: dict[str, str],
    ) -> Reply:
        recorder = Recorder(self.blocks)
        end = follow(self._versions, recorder, cid, names, cached=False).block if names else cid
        # what was read of the end itself belongs to what follows
        way = {one: data for one, data in recorder.read.items() if one != end}
        path = quote("/".join(names))
        mark = f".{quote(path, safe='')}" if names else ""
        etag = f'"{format_cid(cid)}{mark}.car.{options.tag}"'
        headers |= _attachment(asked, f"{format_cid(end)}.car")
        headers |= {
            "Content-Type": options.media_type,
            "Etag": etag,
            "Accept-Ranges": "none",
            "X-Ipfs-Roots": ",".join(dict.fromkeys((format_cid(cid), format_cid(end)))),
        }
        if matches_etag(asked, etag):
            return Reply(304, headers)
        self._look(asked, end)
        if asked.head:
            return Reply(200, headers, iter(()))
        pieces = _car_pieces(self.blocks, way, end, options)
        return Reply(200, headers, _gathered(encode_roots([end]), pieces))

    def _content(
        self,
        asked: Asked,
        cid: CidBytes,
        names: list[str],
        wanted: Format,
        headers: dict[str, str],
        *,
        slash: bool,
    ) -> Reply:
        with _all_here():
            target = follow(self._versions, self.blocks, cid, names)
        roots = dict.fromkeys(format_cid(one) for one in (cid, target.block))
        headers["X-Ipfs-Roots"] = ",".join(roots)
        if target.kind != "block" and wanted in ("dag-json", "dag-cbor"):
            raise HttpError(406, f"this is a {target.kind}, not {wanted}; leave the format out")
        if target.kind == "directory":
            if not slash:
                query = f"?{urlencode(asked.query)}" if asked.query else ""
                raise HttpError(301, "", headers={"Location": f"{asked.path}/{query}"})
            return self._directory(asked, target, names, wanted, headers)
        name = names[-1] if names else ""
        codec = codec_of(target.block)
        if target.kind == "block" and codec in _PLAIN:
            headers["Content-Type"] = _PLAIN[codec]
        elif target.kind == "block":
            label: dict[int, Format] = {DAG_JSON: "dag-json", DAG_CBOR: "dag-cbor"}
            own = label.get(codec)
            fits = wanted in ("any", "html", own) or (wanted == "json" and own == "dag-json")
            if own is None or not fits:
                raise HttpError(
                    406, f"the block has codec 0x{codec:x}; it is served as it is: format=raw"
                )
            media = "application/json" if wanted == "json" else f"application/vnd.ipld.{own}"
            headers["Content-Type"] = media
            headers |= _attachment(asked, f"{format_cid(target.block)}.{own}")
        return self._bytes(asked, target, name, headers)

    def _directory(
        self,
        asked: Asked,
        target: Target,
        names: list[str],
        wanted: Format,
        headers: dict[str, str],
    ) -> Reply:
        if wanted != "json":
            try:
                index = follow(self._versions, self.blocks, target.block, ["index.html"])
            except NotFoundError:
                index = None
            if index is not None and index.kind == "file":
                return self._bytes(asked, index, "index.html", headers)
        data, media = listing(self.blocks, target.block, names, as_json=wanted == "json")
        etag = f'"dir-1-{format_cid(target.block)}.{media.rpartition("/")[2][:4]}"'
        headers |= {"Content-Type": media, "Etag": etag, "X-Content-Type-Options": "nosniff"}
        return Reply(304, headers) if matches_etag(asked, etag) else Reply(200, headers, data)

    def _bytes(self, asked: Asked, target: Target, name: str, headers: dict[str, str]) -> Reply:
        """Answer with the bytes of a value, a file, or a document."""
        etag = f'"{target.etag}"'
        headers["Etag"] = etag
        headers.setdefault("Content-Type", media_type(asked.query.get("filename") or name))
        if "filename" in asked.query or asked.query.get("download") == "true":
            headers |= _attachment(
                asked, name, inline_by_default=asked.query.get("download") != "true"
            )
        if matches_etag(asked, etag):
            return Reply(304, headers)
        size = target.size
        if target.data is not None:
            whole = memoryview(target.data)
            return _ranged(asked, headers, size, etag, lambda start, stop: whole[start:stop])
        blocks = self.blocks

        def pieces(start: int, stop: int) -> Iterator[bytes | memoryview]:
            with _all_here():
                yield from pieces_of(blocks, target, start, stop)

        return _ranged(asked, headers, size, etag, pieces)


# -- small parts ---------------------------------------------------------------------------------


@contextmanager
def _all_here() -> Iterator[None]:
    """Make a missing block an error of the server, where bytes are asked for and not blocks.

    To a reader of Zarr 404 means a chunk that was never written, whose values are fill values: that
    may be said of a key that is not there, and never of one that cannot be read here.
    """
    try:
        yield
    except BlockNotFoundError as error:
        raise StorageError(str(error)) from error


def _ranged(
    asked: Asked,
    headers: dict[str, str],
    size: int,
    etag: str,
    read: Callable[[int, int], bytes | memoryview | Iterator[bytes | memoryview]],
) -> Reply:
    """Answer with all bytes, or with those that Range asks for."""
    headers = {**headers, "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    try:
        found = byte_range(asked, size, etag)
    except HttpError as error:
        error.headers["Accept-Ranges"] = "bytes"
        raise
    start, stop = found or (0, size)
    if found is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    body = b"" if asked.head or start == stop else read(start, stop)
    return Reply(200 if found is None else 206, headers, body, stop - start)


def _car_pieces(
    blocks: BlockStore, way: dict[CidBytes, bytes], end: CidBytes, options: CarOptions
) -> Iterator[tuple[CidBytes, bytes]]:
    """Yield the blocks of a CAR: those along the path, then what the scope says of its end."""
    seen: set[CidBytes] = set()
    for cid, data in way.items():
        seen.add(cid)
        yield cid, data
    if options.scope == "all":
        yield from dag_blocks(blocks, end, dups=options.dups, seen=seen)
        return
    found: Iterator[tuple[CidBytes, bytes]]
    if options.scope == "entity":
        found = entity_blocks(blocks, end, options.entity, dups=options.dups)
    else:
        found = iter([(end, read_block(blocks, end))])
    for cid, data in found:
        if not is_inline(cid) and (options.dups or cid not in seen):
            seen.add(cid)
            yield cid, data


def _gathered(
    header: bytes, found: Iterator[tuple[CidBytes, bytes]]
) -> Iterator[bytes | memoryview]:
    """Yield a CAR in pieces: small sections together, large blocks as they are."""
    held = bytearray(header)
    for cid, data in found:
        held += section_head(cid, len(data))
        if len(data) < _PIECE:
            held += data
        if len(held) >= _PIECE or len(data) >= _PIECE:
            yield bytes(held)
            held.clear()
        if len(data) >= _PIECE:
            yield data
    if held:
        yield bytes(held)


def _attachment(asked: Asked, name: str, *, inline_by_default: bool = False) -> dict[str, str]:
    given = asked.query.get("filename") or name
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in given)
    kind = "inline" if inline_by_default else "attachment"
    value = f'{kind}; filename="{plain[:_MAX_FILENAME]}"'
    if plain != given:
        coded = quote(given[:_MAX_FILENAME].encode("utf-8", "replace"), safe="")
        value += f"; filename*=UTF-8''{coded}"
    return {"Content-Disposition": value, "X-Content-Type-Options": "nosniff"}


def _unquoted(segment: str) -> str:
    try:
        text = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise HttpError(400, "the path is no utf-8") from None
    if "\0" in text:
        raise HttpError(400, "the path has a nul")
    return text


def _refusal(error: HttpError) -> Reply:
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        **error.headers,
    }
    return Reply(error.status, headers, f"{error.text}\n".encode("utf-8", "replace"))
