"""Making one pack of several, and packs without some of their blocks.

The number of packs stays logarithmic: four packs of one size class (a power of four) become one,
with all smaller ones. Counted on 1 600 equal flushes: at most 15 packs, each byte copied 4.5 times;
the rule that a pack be twice as large as all smaller ones gives 7 packs and 8.7 copies.

Sections are copied as they lie, in long stretches, after a look at each: a merge never makes a
structure that it did not check. The new pack is durable before the old ones go, so a crash leaves
both, which does no harm; neither does a second process that merges the same packs at the same time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks import disk
from cas_zarr.blocks.index import KEY_SIZE, multihashes
from cas_zarr.blocks.pack import (
    EMPTY_PAYLOAD,
    MAX_SECTION,
    Pack,
    create_part,
    parse_section,
    seal_part,
)
from cas_zarr.cid import BLAKE3, DIGEST_SIZE, HASHES
from cas_zarr.codecs.car import DATA_START
from cas_zarr.codecs.carindex import encode_index
from cas_zarr.errors import FormatError

__all__ = ["DamagedPackError", "Drop", "choose", "merge"]

Drop: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
"""Tells for each of many multihashes, (n, 34) uint8, whether it is to go."""

_LARGE_BYTES = 1 << 30  # packs from here on are left alone
_LARGE_COUNT = 1 << 20
_FAN_IN = 4
_COPY_SIZE = 4 << 20
_SPARSE = 1 << 14  # mean section from which headers are read one by one
_HEAD_SIZE = 300


class DamagedPackError(FormatError):
    """A pack cannot be copied: its index does not fit its sections.

    Attributes
    ----------
    pack : Pack
    """

    def __init__(self, pack: Pack, what: str) -> None:
        super().__init__(f"pack {pack.path} is damaged: {what}; run verify")
        self.pack = pack


def choose(packs: Collection[Pack]) -> list[Pack]:
    """Return the packs that should become one, largest first; empty if there are few enough."""
    small = sorted(
        (
            pack
            for pack in packs
            if pack.file_size < _LARGE_BYTES and pack.index.count < _LARGE_COUNT
        ),
        key=lambda pack: (pack.file_size, pack.path),
    )
    cut = 0
    in_class: Counter[int] = Counter()
    for i, pack in enumerate(small):
        size_class = pack.file_size.bit_length() // 2
        in_class[size_class] += 1
        if in_class[size_class] >= _FAN_IN:
            cut = i + 1
    return small[:cut][::-1]


def merge(folder: str, packs: Sequence[Pack], drop: Collection[bytes] | Drop = ()) -> Pack | None:
    """Write the blocks of several packs into a new one, each block once.

    Parameters
    ----------
    folder : str
        Where the new pack will lie.
    packs : sequence of Pack
    drop : collection of bytes, or callable
        Multihashes of the blocks to leave out, or what tells which they are.

    Returns
    -------
    Pack or None
        The new pack, whose name is not durable yet; None if no block is left.

    Raises
    ------
    DamagedPackError
        If a pack is damaged in its structure; nothing was done.
    OSError
        If the disk failed; nothing was done.
    """
    surveys = [_survey(pack) for pack in packs]
    _drop_copies(surveys)
    if callable(drop):
        for survey in surveys:
            survey.keep &= ~drop(survey.keys())
    elif drop:
        _drop_blocks(surveys, drop)
    if not any(survey.keep.any() for survey in surveys):
        return None
    fd, path = create_part(folder)
    try:
        data_size = _copy(fd, surveys)
        index = encode_index(_index_groups(surveys))
        sealed = seal_part(fd, path, data_size, index, _salt(packs))
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            disk.unlink(path)
        raise
    disk.unlock(fd)  # only the packs of a session that has not flushed are locked
    return Pack(sealed, fd)


def _salt(packs: Sequence[Pack]) -> bytes:
    """Return what names a merged pack beside its index.

    Two processes that merge the same packs make one pack. But the name of a pack that is gone never
    comes back: a list of condemned blocks that names it would take the new one for it.
    """
    return BLAKE3.digest("/".join(sorted(pack.name for pack in packs)).encode())


@dataclass(slots=True)
class _Survey:
    """The sections of a pack, in the order in which they lie."""

    pack: Pack
    codes: NDArray[np.uint8]
    digests: NDArray[np.uint8]  # (n, 32)
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]  # of whole sections
    keep: NDArray[np.bool_]
    moved: NDArray[np.int64]  # offsets in the new pack, for those that are kept

    def keys(self) -> NDArray[np.uint8]:
        """Return all multihashes, (n, 34)."""
        return multihashes(self.codes, self.digests)

    def key(self, i: int) -> bytes:
        digest: bytes = self.digests[i].tobytes()
        return bytes([int(self.codes[i]), DIGEST_SIZE]) + digest


def _survey(pack: Pack) -> _Survey:
    records = pack.index.records()
    codes = np.concatenate(
        [np.full(len(offsets), code, np.uint8) for code, _, offsets in records]
        or [np.empty(0, np.uint8)]
    )
    digests = np.concatenate(
        [digests for _, digests, _ in records] or [np.empty((0, DIGEST_SIZE), np.uint8)]
    )
    offsets = np.concatenate([offsets for _, _, offsets in records] or [np.empty(0, np.uint64)])
    if len(offsets) and int(offsets.max()) >= pack.data_size:
        raise DamagedPackError(pack, "its index leads behind its data")
    order = np.argsort(offsets, kind="stable")
    offsets = offsets[order].astype(np.int64)
    survey = _Survey(
        pack,
        codes[order],
        digests[order],
        offsets,
        np.zeros(len(offsets), np.int64),
        np.ones(len(offsets), bool),
        np.zeros(len(offsets), np.int64),
    )
    if len(offsets) * _SPARSE < pack.data_size:
        for i, offset in enumerate(offsets.tolist()):
            survey.lengths[i] = _length_at(survey, i, pack.read(offset, _HEAD_SIZE), 0)
    else:
        first = 0
        while first < len(offsets):
            start = int(offsets[first])
            last = int(np.searchsorted(offsets, start + _COPY_SIZE))
            _measure(survey, first, last, pack.read(start, _COPY_SIZE + _HEAD_SIZE))
            first = last
    ends = offsets + survey.lengths
    if len(ends) and (int(ends[-1]) > pack.data_size or bool((ends[:-1] > offsets[1:]).any())):
        raise DamagedPackError(pack, "sections overlap, or reach behind its data")
    return survey


def _measure(survey: _Survey, first: int, last: int, window: bytes) -> None:
    """Check the sections `first` to `last`, which begin in `window`, and note their lengths."""
    data = np.frombuffer(window + bytes(_HEAD_SIZE), np.uint8)
    at = survey.offsets[first:last] - survey.offsets[first]
    if int(at[-1]) >= len(window):
        raise DamagedPackError(survey.pack, "it is cut off")
    codes = survey.codes[first:last]
    # Lengths of one to three bytes and CIDs of 36 bytes, which is nearly all; the rest one by one.
    low, middle, high = (data[at + i].astype(np.int64) for i in range(3))
    one, two = low < 128, (low >= 128) & (middle < 128)
    width = np.where(one, 1, np.where(two, 2, 3))
    length = np.where(one, low, low - 128 + (middle << 7))
    length = np.where(one | two, length, low - 128 + (middle - 128 << 7) + (high << 14))
    cid = at + width
    usual = (
        (one | two | (high < 128))
        & (data[cid] == 1)
        & (data[cid + 1] < 128)
        & (data[cid + 2] == codes)
        & (data[cid + 3] == DIGEST_SIZE)
        & (length >= DIGEST_SIZE + 4)
        & (length <= MAX_SECTION)
    )
    found = data[np.minimum(cid + 4, len(data) - DIGEST_SIZE)[:, None] + np.arange(DIGEST_SIZE)]
    usual &= (found == survey.digests[first:last]).all(axis=1)
    survey.lengths[first:last] = width + length
    for i in np.flatnonzero(~usual).tolist():
        survey.lengths[first + i] = _length_at(survey, first + i, window, int(at[i]))


def _length_at(survey: _Survey, i: int, data: bytes, at: int) -> int:
    try:
        cid, _, end = parse_section(data, at)
    except FormatError as error:
        raise DamagedPackError(survey.pack, str(error)) from None
    if cid[-KEY_SIZE:] != survey.key(i):
        raise DamagedPackError(survey.pack, "its index leads to another block")
    return end - at


def _drop_copies(surveys: list[_Survey]) -> None:
    """Keep one copy of each block, a sound one if there is one."""
    heads = np.concatenate([_heads(survey.digests) for survey in surveys])
    order = np.argsort(heads, kind="stable")
    again = np.flatnonzero(heads[order][1:] == heads[order][:-1])
    if not len(again):
        return
    copies: dict[bytes, list[tuple[_Survey, int]]] = {}
    starts = np.cumsum([0, *(len(survey.offsets) for survey in surveys)])
    for i in sorted({*order[again].tolist(), *order[again + 1].tolist()}):
        which = int(np.searchsorted(starts, i, side="right")) - 1
        survey, i = surveys[which], i - int(starts[which])
        copies.setdefault(survey.key(i), []).append((survey, i))
    for places in copies.values():
        if len(places) > 1:
            best = next((place for place in places if _is_sound(*place)), places[0])
            for survey, i in places:
                survey.keep[i] = (survey, i) == best


def _is_sound(survey: _Survey, i: int) -> bool:
    section = survey.pack.read(int(survey.offsets[i]), int(survey.lengths[i]))
    _, begin, _ = parse_section(section)
    key = survey.key(i)
    return HASHES[key[0]].digest(section[begin:]) == key[-DIGEST_SIZE:]


def _drop_blocks(surveys: list[_Survey], drop: Collection[bytes]) -> None:
    wanted = np.frombuffer(b"".join(drop), np.uint8).reshape(-1, KEY_SIZE)[:, 2:]
    heads = _heads(wanted)
    for survey in surveys:
        for i in np.flatnonzero(np.isin(_heads(survey.digests), heads)).tolist():
            if survey.key(i) in drop:
                survey.keep[i] = False


def _copy(fd: int, surveys: list[_Survey]) -> int:
    """Copy what is kept, note where it goes, and return the size of the new payload."""
    size = len(EMPTY_PAYLOAD)
    slab = bytearray(EMPTY_PAYLOAD)
    written = DATA_START
    for survey in surveys:
        kept = np.flatnonzero(survey.keep)
        if not len(kept):
            continue
        offsets, lengths = survey.offsets[kept], survey.lengths[kept]
        ends = np.cumsum(lengths) + size
        survey.moved[kept] = ends - lengths
        size = int(ends[-1])
        breaks = np.flatnonzero(offsets[:-1] + lengths[:-1] != offsets[1:]) + 1
        firsts = [0, *breaks.tolist()]
        lasts = [*breaks.tolist(), len(kept)]
        for first, last in zip(firsts, lasts, strict=True):
            start, stop = int(offsets[first]), int(offsets[last - 1] + lengths[last - 1])
            while start < stop:
                piece = survey.pack.read(start, min(stop - start, _COPY_SIZE))
                if not piece:
                    raise DamagedPackError(survey.pack, "it is cut off")
                slab += piece
                start += len(piece)
                if len(slab) >= _COPY_SIZE:
                    disk.pwrite(fd, slab, written)
                    written += len(slab)
                    slab.clear()
    disk.pwrite(fd, slab, written)
    return size


def _index_groups(
    surveys: list[_Survey],
) -> list[tuple[int, NDArray[np.uint8], NDArray[np.uint64]]]:
    codes = np.concatenate([survey.codes[survey.keep] for survey in surveys])
    digests = np.concatenate([survey.digests[survey.keep] for survey in surveys])
    offsets = np.concatenate([survey.moved[survey.keep] for survey in surveys]).astype(np.uint64)
    return [
        (code, digests[codes == code], offsets[codes == code]) for code in np.unique(codes).tolist()
    ]


def _heads(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()
