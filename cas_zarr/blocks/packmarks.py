"""Marks for the blocks of a folder of packs, a byte for each.

A pack never changes, so a mark is a place in an array beside the pack's sorted index. Multihashes
are gathered until there are enough of them to be looked up in each index from end to end.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from cas_zarr.blocks import disk
from cas_zarr.blocks.collectable import Marks, Swept
from cas_zarr.blocks.condemned import Condemned, encode_condemned
from cas_zarr.blocks.folder import PackFolder
from cas_zarr.blocks.index import KEY_SIZE, Heads, multihashes
from cas_zarr.blocks.merge import DamagedPackError, merge
from cas_zarr.blocks.pack import EMPTY_PAYLOAD, Pack

__all__ = ["PackMarks"]

_LEAST_BATCH = 1 << 16
_LARGEST_BATCH = 1 << 20
_MOST_BITS = 20  # 36 MB


class PackMarks(Marks):
    """Marks for some packs of a folder.

    Parameters
    ----------
    folder : PackFolder
    packs : collection of Pack
    spared : collection of str
        Names of those whose blocks are not condemned: their session has not flushed yet.
    """

    def __init__(
        self, folder: PackFolder, packs: Collection[Pack], spared: Collection[str] = ()
    ) -> None:
        self._folder = folder
        self._packs = {pack.name: pack for pack in packs}
        self._spared = frozenset(spared)
        self._marks = {name: np.zeros(p.index.count, bool) for name, p in self._packs.items()}
        self._heads: dict[str, Heads] = {name: {} for name in self._packs}
        self._waiting: list[NDArray[np.uint8]] = []
        self._count = 0
        self.blocks = sum(len(marks) for marks in self._marks.values())
        self.size = sum(pack.data_size - len(EMPTY_PAYLOAD) for pack in packs)
        self._batch = min(max(self.blocks // 16, _LEAST_BATCH), _LARGEST_BATCH)
        # Versions name the same blocks again and again: the last multihash of each beginning
        bits = min(max(self.blocks.bit_length(), 1), _MOST_BITS)
        self._shift = np.uint32(32 - bits)
        self._last = np.zeros((1 << bits, KEY_SIZE), np.uint8)

    # docstrings inherited

    def mark(self, keys: NDArray[np.uint8]) -> None:
        begins = np.ascontiguousarray(keys[:, 2:6]).view(">u4").ravel().astype(np.uint32)
        places = begins >> self._shift
        fresh = (self._last[places] != keys).any(axis=1)
        if not fresh.any():
            return
        keys = keys[fresh]
        self._last[places[fresh]] = keys
        self._waiting.append(keys)
        self._count += len(keys)
        if self._count >= self._batch:
            self._look_up()

    def used(self) -> tuple[int, int]:
        self._look_up()
        count = size = 0
        for pack, marks, sizes in self._all():
            count += int(marks.sum())
            size += int(sizes[marks].sum()) if marks.any() else 0
            del pack
        return count, size

    def condemn(self, max_unused: float) -> bytes | None:
        self._look_up()
        shares = []
        for pack, marks, sizes in self._all():
            if pack.name not in self._spared and not marks.all():
                unused = int(sizes[~marks].sum())
                shares.append((not marks.any(), unused / max(pack.data_size, 1), unused, pack.name))
        shares.sort(reverse=True)  # what is not used at all, then what is used least
        left = sum(unused for _, _, unused, _ in shares)
        names: list[str] = []
        size = 0
        for whole, _, unused, name in shares:
            if not whole and left <= max_unused * self.size:
                break
            names.append(name)
            left -= unused
            size += unused
        if not names:
            return None
        keys = [_keys(self._packs[name])[~self._marks[name]] for name in names]
        return encode_condemned(keys, names, blocks=sum(map(len, keys)), size=size)

    def sweep(self, condemned: Condemned, *, dry_run: bool = False) -> Swept:
        self._look_up()
        done = Swept()
        # The least work first, and what frees most: after a full disk the rest may have room.
        for name in sorted(condemned.places & self._packs.keys(), key=self._left_in):
            pack = self._packs[name]
            if not os.path.exists(pack.path):  # merged by a process that did not know of the list
                self._forget(name)
                continue
            try:
                done += self._sweep_one(pack, condemned, dry_run)
            except DamagedPackError as error:
                done += Swept(damaged=(str(error),))
            except OSError as error:
                raise disk.failure(error, "write a pack anew", pack.path) from error
        return done

    # ---------------------------------------------------------------------------------------

    def _all(self) -> Iterator[tuple[Pack, NDArray[np.bool_], NDArray[np.int64]]]:
        """Yield each pack that is still there with its marks and the sizes of its sections."""
        for name, pack in list(self._packs.items()):
            sizes = _sizes(pack)
            if len(sizes) != len(self._marks[name]):  # it slept, and was merged away meanwhile
                self._forget(name)
            elif len(sizes):
                yield pack, self._marks[name], sizes

    def _left_in(self, name: str) -> int:
        return int(self._marks[name].sum())

    def _forget(self, name: str) -> None:
        del self._packs[name]
        del self._marks[name]
        del self._heads[name]

    def _look_up(self) -> None:
        if not self._count:
            return
        keys = np.concatenate(self._waiting)
        self._waiting, self._count = [], 0
        order = np.argsort(np.ascontiguousarray(keys[:, 2:10]).view(">u8").ravel())
        keys = keys[order]  # so that each index is gone through from end to end
        for name, pack in self._packs.items():
            rows = pack.index.find_rows(keys, self._heads[name])
            rows = rows[rows >= 0]
            if len(rows) and len(self._marks[name]) == pack.index.count:
                self._marks[name][rows] = True

    def _sweep_one(self, pack: Pack, condemned: Condemned, dry_run: bool) -> Swept:
        marks = self._marks[pack.name]
        keys = _keys(pack)
        if len(keys) != len(marks):
            self._forget(pack.name)
            return Swept()
        goes = condemned.holds_many(keys) & ~marks
        if not goes.any():
            return Swept()
        size = int(_sizes(pack)[goes].sum())
        stays = keys[~goes]
        if dry_run:
            whole = int(len(stays) == 0)
            freed = size if len(stays) else pack.file_size
            return Swept(int(goes.sum()), size, 1 - whole, whole, freed)
        if len(stays):
            new = merge(self._folder.path, [pack], lambda found: self._goes(pack, found, goes))
        else:
            new = None
        self._folder.replace([pack], new)
        self._forget(pack.name)
        if new is not None:
            self._packs[new.name] = new
            self._heads[new.name] = {}
            fresh = self._marks[new.name] = np.zeros(new.index.count, bool)
            fresh[new.index.find_rows(stays[marks[~goes]])] = True
            if pack.name in self._spared:
                self._spared |= {new.name}
        self.blocks -= len(keys) - (0 if new is None else new.index.count)
        self.size -= pack.data_size - (0 if new is None else new.data_size)
        return Swept(
            blocks=int(goes.sum()),
            size=size,
            rewritten=int(new is not None),
            removed=int(new is None),
            freed=pack.file_size - (0 if new is None else new.file_size),
        )

    @staticmethod
    def _goes(pack: Pack, keys: NDArray[np.uint8], goes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        rows = pack.index.find_rows(keys)
        found: NDArray[np.bool_] = goes[rows] & (rows >= 0)
        return found


def _keys(pack: Pack) -> NDArray[np.uint8]:
    """Return the multihashes of a pack in the order of its index, (n, 34)."""
    parts = [multihashes(code, digests) for code, digests, _ in pack.index.records()]
    return np.concatenate(parts) if parts else np.empty((0, KEY_SIZE), np.uint8)


def _sizes(pack: Pack) -> NDArray[np.int64]:
    """Return the sizes of a pack's sections in the order of its index, in bytes."""
    parts = [offsets for _, _, offsets in pack.index.records()]
    if not parts:
        return np.empty(0, np.int64)
    offsets = np.minimum(np.concatenate(parts), pack.data_size).astype(np.int64)
    order = np.argsort(offsets, kind="stable")
    sizes = np.empty(len(offsets), np.int64)
    sizes[order] = np.diff(offsets[order], append=pack.data_size)
    return sizes
