"""The blocks of a CAR that a server sends, held against what was asked for.

Each block is verified as it comes. A server could send sound blocks of another DAG for ever, so
only blocks that the root or an earlier block links are given, and the number of others is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, cast

from cas_zarr.blocks.carsource import Paced
from cas_zarr.blocks.http import HttpStream
from cas_zarr.blocks.transport import shown
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    DIGEST_SIZE,
    HASHES,
    CidBytes,
    as_cid_bytes,
    codec_of,
    format_cid,
)
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.car import PRAGMA, CarReader
from cas_zarr.errors import CorruptBlockError, FormatError, InvalidCIDError, LimitError, RemoteError

__all__ = ["Car", "blocks_of"]

_TYPE = "application/vnd.ipld.car"
_UNASKED = 64  # blocks; repeated ones count as well

_CBOR_LINK = re.compile(rb"\xd8\x2a\x58([\x22-\x7f])\x00", re.DOTALL)
_JSON_LINK = re.compile(rb'"/"\s*:\s*"([A-Za-z0-9]{46,128})"')


class Car(Paced):
    """The body of an answer that should be a CAR, as a binary file for `CarReader`.

    Parameters
    ----------
    stream : HttpStream
    url : str
        For messages.
    timeout : float
        Seconds in which 1 KiB for each of them must come.
    """

    def __init__(self, stream: HttpStream, url: str, timeout: float) -> None:
        super().__init__(stream, shown(url), timeout)
        kind = stream.headers.get("content-type", "none").partition(";")[0].strip().lower()
        if stream.status != 200 or kind != _TYPE:
            raise RemoteError(
                f"GET {self.where}: it answers {stream.status} with content of type {kind[:60]!r} "
                f"and not {_TYPE}; ask for single blocks, or check that it is a trustless gateway",
                status=stream.status,
            )
        self._head = b""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes."""
        piece = super().read(size)
        if len(self._head) < len(PRAGMA):
            self._head += piece[: len(PRAGMA)]
            if self._head.startswith(PRAGMA):  # what stands before its blocks has no bound
                raise RemoteError(
                    f"GET {self.where}: it is a car of version 2, and one of version 1 was asked "
                    "for; ask another gateway"
                )
        return piece


def blocks_of(car: Car, root: CidBytes) -> Iterator[tuple[CidBytes, bytes]]:
    """Yield the blocks of a CAR that `root` leads to, each once and verified.

    Raises
    ------
    RemoteError
        If it breaks off, is no CAR, lacks its root or holds too much else.
    CorruptBlockError
        If a block does not hash to its CID.
    """
    wanted = {_name(root)}
    given: set[bytes] = set()
    unasked = 0
    try:
        for cid, data in CarReader(cast(BinaryIO, car)):
            name = _name(cid)
            if name not in wanted or not name:
                unasked += 1
                if unasked > max(_UNASKED, len(given)):
                    raise RemoteError(
                        f"GET {car.where}: {unasked} blocks of the car were not asked for, the "
                        f"last one {format_cid(cid)}; ask another gateway"
                    )
                continue
            wanted.discard(name)
            given.add(name)
            wanted.update(link for link in _links(cid, data) if link not in given)
            yield as_cid_bytes(cid), data
    except CorruptBlockError as error:
        raise CorruptBlockError(f"GET {car.where}: {error}") from error
    except (FormatError, LimitError) as error:
        raise RemoteError(f"GET {car.where}: {error}; ask for the rest block by block") from error
    if _name(root) not in given:
        raise RemoteError(
            f"GET {car.where}: the car has no block {format_cid(root)}; ask another gateway"
        )


def _name(cid: CidBytes) -> bytes:
    """Return the multihash of a CID: the codec does not matter for finding a block."""
    with suppress(InvalidCIDError):
        tail = bytes(cid[-DIGEST_SIZE - 2 :])
        if len(tail) == DIGEST_SIZE + 2 and tail[0] in HASHES and tail[1] == DIGEST_SIZE:
            return tail
    return b""


def _links(cid: CidBytes, data: bytes) -> Iterator[bytes]:
    """Yield the multihashes that a block may link; to find some too many does no harm."""
    codec = codec_of(cid)
    if codec == DAG_PB:
        with suppress(FormatError):
            yield from (_name(link.cid) for link in dagpb.decode(data).links)
    elif codec == DAG_CBOR:
        for match in _CBOR_LINK.finditer(data):
            end = match.end() + match[1][0] - 1
            yield _name(CidBytes(data[match.end() : end]))
    elif codec == DAG_JSON:
        for match in _JSON_LINK.finditer(data):
            with suppress(InvalidCIDError):
                yield _name(as_cid_bytes(match[1].decode("ascii")))
