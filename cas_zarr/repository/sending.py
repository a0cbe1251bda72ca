"""Sending blocks to a node: as CARs, read ahead, again where the connection breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

from cas_zarr.blocks.base import MAX_BLOCK_SIZE, BlockStore
from cas_zarr.blocks.ipfsnode import IpfsNode
from cas_zarr.cid import BytesLike, CidBytes
from cas_zarr.codecs.car import encode_roots, section_head
from cas_zarr.errors import RemoteError

__all__ = ["Outgoing", "Progress", "Sent", "send"]

Outgoing: TypeAlias = "CidBytes | tuple[CidBytes, BytesLike | None]"
"""A block to send: its CID, or CID and bytes; without bytes it is read from where it lies."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the blocks and the bytes that have been sent."""

_Item: TypeAlias = "tuple[CidBytes, BytesLike | None]"

CAR_BYTES: Final = 256 << 20  # unless a single lot of blocks has more
CAR_BLOCKS: Final = 1 << 16  # their CIDs are kept until the CAR has arrived
_GIVEN_BYTES: Final = 32 << 20  # of blocks that cannot be read again, likewise
_FRAME: Final = 64  # bytes that stand before a block in a CAR, at most
_READ: Final = 32  # blocks that are read at once; some of these lots are in memory
_PAUSES = (0.5, 1.0, 2.0)  # seconds before the same CAR is sent again
_NOT_THERE = (404, 405, 501)
_LATER = (429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Sent:
    """How many blocks were sent, and how many bytes they have."""

    blocks: int
    size: int


def send(
    node: IpfsNode,
    source: BlockStore,
    outgoing: Iterable[Outgoing],
    *,
    progress: Progress | None = None,
    upload: Callable[[Iterable[bytes]], None] | None = None,
    roots: Sequence[CidBytes] = (),
) -> Sent:
    """Send blocks to a node.

    Parameters
    ----------
    node : IpfsNode
    source : BlockStore
        Where blocks without bytes are read, verified.
    outgoing : iterable of CID, or of (CID, bytes or None)
        Children before parents, so that what is there tells what is below it when the rest never
        comes. It is consumed while the blocks before are on their way.
    progress : callable, optional
        Called with the blocks and the bytes that are on their way.
    upload : callable, optional
        Takes the pieces of a CAR; by default `IpfsNode.import_car`, and where the node does not
        know that, its blocks are put one by one.
    roots : sequence of CidBytes
        Written into the header of each CAR; nothing is pinned by default.

    Raises
    ------
    RemoteError
        If a connection broke and did so again on further tries, or the node refuses a block. What
        has arrived stays.
    BlockNotFoundError, CorruptBlockError
        If the source lacks a block, or what it has is damaged.
    """
    sender = _Sender(node, source, progress, upload, roots)
    items = (one if isinstance(one, tuple) else (one, None) for one in outgoing)
    with ThreadPoolExecutor(1, thread_name_prefix="cas-zarr-ahead") as pool:
        lots = _Ahead(pool, source, items)
        try:
            while lots.more():
                sender.car(lots)
        finally:
            lots.stop()
    return Sent(sender.blocks, sender.size)


class _Ahead:
    """Blocks that are read in lots, the next while the last is under way."""

    def __init__(self, pool: ThreadPoolExecutor, source: BlockStore, items: Iterator[_Item]):
        self._pool = pool
        self._source = source
        self._items = items
        self._next = pool.submit(self._read)

    def more(self) -> bool:
        return bool(self._next.result())

    def take(self) -> list[tuple[_Item, BytesLike]]:
        """Return the next lot; none at the end."""
        lot = self._next.result()
        if lot:
            self._next = self._pool.submit(self._read)
        return lot

    def stop(self) -> None:
        self._items = iter(())

    def _read(self) -> list[tuple[_Item, BytesLike]]:
        lot = list(islice(self._items, _READ))
        return list(zip(lot, _filled(self._source, lot), strict=True))


class _Sender:
    def __init__(
        self,
        node: IpfsNode,
        source: BlockStore,
        progress: Progress | None,
        upload: Callable[[Iterable[bytes]], None] | None,
        roots: Sequence[CidBytes],
    ) -> None:
        self.node = node
        self.source = source
        self.progress = progress
        self.upload = upload or node.import_car
        self.single = upload is None  # whether blocks may be put one by one
        self.roots = tuple(roots)
        self.imports = True
        self.blocks = self.size = 0

    def car(self, lots: _Ahead) -> None:
        """Send the next CAR, if need be again."""
        taken: list[_Item] = []

        def fresh() -> Iterator[tuple[CidBytes, BytesLike]]:
            size = given = 0
            while not taken or (
                size + _READ * (MAX_BLOCK_SIZE + _FRAME) < CAR_BYTES
                and len(taken) < CAR_BLOCKS
                and given < _GIVEN_BYTES
            ):
                lot = lots.take()
                if not lot:
                    return
                taken.extend(item for item, _ in lot)
                size += sum(len(data) + _FRAME for _, data in lot)
                given += sum(len(data) for item, data in lot if item[1] is not None)
                self._count(lot)
                yield from ((cid, data) for (cid, _), data in lot)

        if not self.imports:
            self._put(fresh())
            return
        try:
            self._upload(fresh())
            return
        except RemoteError as error:
            failure = error
        for pause in _PAUSES:
            if failure.status is not None and failure.status not in _LATER:
                break  # it has answered, and would say the same again
            time.sleep(pause)
            try:
                self._upload(self._again(taken))
                return
            except RemoteError as error:
                failure = error
        if self.single and failure.status in _NOT_THERE:
            self.imports = False
            self._put(self._again(taken))
            return
        if taken and self.single and failure.status is None:
            for cid, data in self._again(taken[:1]):  # asked for one it may say why it breaks off
                self.node.block_put(cid, data)
        raise failure

    def _upload(self, blocks: Iterator[tuple[CidBytes, BytesLike]]) -> None:
        self.upload(_pieces(self.roots, blocks))

    def _again(self, taken: Sequence[_Item]) -> Iterator[tuple[CidBytes, BytesLike]]:
        for start in range(0, len(taken), _READ):
            lot = taken[start : start + _READ]
            yield from zip((cid for cid, _ in lot), _filled(self.source, lot), strict=True)

    def _put(self, blocks: Iterator[tuple[CidBytes, BytesLike]]) -> None:
        with ThreadPoolExecutor(_READ // 2, thread_name_prefix="cas-zarr-put") as pool:
            while lot := list(islice(blocks, _READ)):
                list(pool.map(lambda one: self.node.block_put(*one), lot))

    def _count(self, lot: Sequence[tuple[_Item, BytesLike]]) -> None:
        self.blocks += len(lot)
        self.size += sum(len(data) for _, data in lot)
        if self.progress is not None:
            self.progress(self.blocks, self.size)


def _filled(source: BlockStore, lot: Sequence[_Item]) -> list[BytesLike]:
    """Return the bytes of some blocks, those that were not given read together."""
    wanted = [cid for cid, data in lot if data is None]
    read = iter(source.get_many(wanted) if wanted else ())
    return [next(read) if data is None else data for _, data in lot]


def _pieces(
    roots: tuple[CidBytes, ...], blocks: Iterator[tuple[CidBytes, BytesLike]]
) -> Iterator[bytes]:
    yield encode_roots(roots)
    for cid, data in blocks:
        yield section_head(cid, len(data))
        yield bytes(data)
