"""Putting the blocks of a folder into as few packs as is sensible, each block once."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks.collectable import Repacked
from cas_zarr.blocks.folder import PackFolder
from cas_zarr.blocks.index import multihashes
from cas_zarr.blocks.merge import DamagedPackError, merge
from cas_zarr.blocks.pack import Pack, parse_section
from cas_zarr.cid import HASHES
from cas_zarr.errors import FormatError

__all__ = ["repack"]

_TARGET = 1 << 30  # bytes of a pack: a larger one is made only where one block too many would be
_MOST = 1 << 20  # blocks of a pack


def repack(folder: PackFolder) -> Repacked:
    """Merge all packs that are not full, and drop all copies but one of each block.

    Of several copies a sound one stays. Packs that a list of condemned blocks names, and those of
    sessions that have not flushed, stay as they are.

    Raises
    ------
    OSError
        If the disk failed. Every pack is either as it was or replaced by a durable one.
    """
    before, bytes_before = len(folder.packs), _bytes(folder)
    damaged: list[str] = []
    packs = [
        pack
        for name, pack in sorted(folder.packs.items())
        if name not in folder.reserved and not folder.is_growing(pack)
    ]
    packs.sort(key=_age)  # what was written together stays together
    copies = _copies(packs)
    for group in _groups(packs, copies):
        drops = [key for pack in group for key in copies.get(pack.name, ())]
        if len(group) == 1 and not drops:
            continue
        try:
            _replace(folder, group, copies)
        except DamagedPackError as error:
            damaged.append(str(error))
            for pack in group:  # the others, without the one that is damaged
                if pack is not error.pack and copies.get(pack.name):
                    try:
                        _replace(folder, [pack], copies)
                    except DamagedPackError as second:
                        damaged.append(str(second))
    return Repacked(
        before, len(folder.packs), bytes_before - _bytes(folder), tuple(dict.fromkeys(damaged))
    )


def _replace(folder: PackFolder, group: Sequence[Pack], copies: dict[str, set[bytes]]) -> None:
    # A block whose copies are all in this group keeps one, which `merge` chooses by itself.
    inside = [pack.name for pack in group]
    drop: set[bytes] = set()
    for key in set().union(*(copies.get(name, set()) for name in inside)):
        holders = [pack for pack in group if pack.index.find(key) is not None]
        if all(key in copies.get(pack.name, ()) for pack in holders):
            drop.add(key)
    folder.replace(group, merge(folder.path, group, drop))


def _copies(packs: Sequence[Pack]) -> dict[str, set[bytes]]:
    """Return for each pack the multihashes of the blocks that it need not keep."""
    counts = [pack.index.count for pack in packs]
    heads = np.concatenate([_heads(pack) for pack in packs] or [np.empty(0, np.uint64)])
    order = np.argsort(heads, kind="stable")
    again = np.flatnonzero(heads[order][1:] == heads[order][:-1])
    rows = np.unique(np.concatenate([order[again], order[again + 1]])) if len(again) else again
    starts = np.concatenate([[0], np.cumsum(counts)])
    places: dict[bytes, list[Pack]] = {}
    for which, pack in enumerate(packs):
        ours = rows[(rows >= starts[which]) & (rows < starts[which + 1])] - starts[which]
        for key in _keys(pack)[ours] if len(ours) else ():
            places.setdefault(key.tobytes(), []).append(pack)
    out: dict[str, set[bytes]] = {}
    for key, holders in places.items():
        if len(holders) > 1:
            best = next((pack for pack in holders if _is_sound(pack, key)), holders[0])
            for pack in holders:
                if pack is not best:
                    out.setdefault(pack.name, set()).add(key)
    return out


def _groups(packs: Sequence[Pack], copies: dict[str, set[bytes]]) -> list[list[Pack]]:
    groups: list[list[Pack]] = []
    size = count = 0
    for pack in packs:
        if pack.data_size >= _TARGET or pack.index.count >= _MOST:
            if copies.get(pack.name):
                groups.append([pack])
                size = count = _TARGET  # the next begins a group of its own
            continue
        size += pack.data_size
        count += pack.index.count
        if not groups or size > _TARGET or count > _MOST:
            groups.append([])
            size, count = pack.data_size, pack.index.count
        groups[-1].append(pack)
    return groups


def _is_sound(pack: Pack, key: bytes) -> bool:
    offset = pack.index.find(key)
    if offset is None:
        return False
    try:
        _, begin, end = parse_section(pack.read(offset, 300))
    except FormatError:
        return False
    data = pack.read(offset, end)[begin:]
    return HASHES[key[0]].digest(data) == key[2:]


def _keys(pack: Pack) -> NDArray[np.uint8]:
    return np.concatenate([multihashes(code, digests) for code, digests, _ in pack.index.records()])


def _heads(pack: Pack) -> NDArray[np.uint64]:
    parts = [
        np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()
        for _, digests, _ in pack.index.records()
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _age(pack: Pack) -> tuple[int, str]:
    try:
        return os.stat(pack.path).st_mtime_ns, pack.name
    except FileNotFoundError:
        return 0, pack.name


def _bytes(folder: PackFolder) -> int:
    return sum(pack.file_size for pack in folder.packs.values())
