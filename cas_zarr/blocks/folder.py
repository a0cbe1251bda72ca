"""The folder of packs that a process knows: learning of new ones, merging, rewriting.

Other processes add packs and merge them at any time, without a lock: a pack that is open stays
readable after its name is gone, and a name appears only when all of the pack is durable. So what
is known here may be old, never wrong, and before a block counts as missing the folder is looked at
once more.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Sequence

from cas_zarr.blocks import disk
from cas_zarr.blocks.index import Directory
from cas_zarr.blocks.merge import DamagedPackError, choose, merge
from cas_zarr.blocks.pack import Pack, is_pack_name
from cas_zarr.errors import FormatError

__all__ = ["PackFolder"]

_COARSE = 2_500_000_000  # nanoseconds within which a folder may change without a new time stamp
_ATTEMPTS = 16


class PackFolder:
    """The packs of a folder. Methods raise `OSError` as it comes.

    Parameters
    ----------
    path : str
    directory : Directory
        Is told of every pack.

    Attributes
    ----------
    packs : dict
        File name -> pack.
    damaged : dict
        File name -> what is wrong, for the packs that cannot be opened.
    lock : RLock
        Held while the packs change.
    reserved : set of str
        File names of packs that a list of condemned blocks names: they are not merged, or what is
        condemned would lie in a pack that the list does not name.
    """

    def __init__(self, path: str, directory: Directory) -> None:
        self.path = path
        self.directory = directory
        self.packs: dict[str, Pack] = {}
        self.damaged: dict[str, str] = {}
        self.lock = threading.RLock()
        self.reserved: set[str] = set()
        self._unmergeable: set[str] = set()
        self._aside: set[str] = set()
        self._names_pending = False  # names of packs that may not be durable yet
        self._stamp = -1

    def refresh(self) -> bool:
        """Learn what packs there are now; tell whether there are new ones."""
        if os.stat(self.path).st_mtime_ns == self._stamp:
            return False
        with self.lock:
            news = False
            for _ in range(_ATTEMPTS):
                began = time.time_ns()
                stamp = os.stat(self.path).st_mtime_ns
                names = self._listing()
                gone = self.packs.keys() - names
                vanished = False
                for name in sorted(names - self.packs.keys() - self.damaged.keys()):
                    try:
                        pack = Pack(os.path.join(self.path, name))
                    except FileNotFoundError:  # merged into another one just now
                        vanished = True
                    except FormatError as error:
                        self.damaged[name] = str(error)
                    else:
                        self.packs[name] = pack
                        self.directory.add(pack)
                        # whoever sealed it may have died before its name was durable, and a
                        # block that is found there is not written again
                        news = self._names_pending = True
                if vanished or (gone and self._listing() != names):
                    continue  # a folder can be listed without the old name and without the new
                for name in gone:
                    self.directory.replace([self.packs.pop(name)], None)
                for name in self.damaged.keys() - names:
                    del self.damaged[name]
                self._stamp = stamp if began - stamp > _COARSE else -1
                break
            return news

    def _listing(self) -> set[str]:
        names = {name for name in os.listdir(self.path) if is_pack_name(name)}
        return names - self._aside

    def take(self, pack: Pack) -> None:
        """Take in a pack that was sealed just now, and that the directory knows already."""
        with self.lock:
            self.packs[pack.name] = pack
            self._names_pending = True

    def sync(self) -> None:
        """Make the names of the packs durable that were taken in."""
        if self._names_pending:
            disk.fsync_folder(self.path)
            self._names_pending = False

    def set_aside(self, name: str) -> None:
        """Forget a pack, though its file is there, until `clear`."""
        with self.lock:
            self._aside.add(name)
            self.damaged.pop(name, None)
            pack = self.packs.pop(name, None)
            if pack is not None:
                self.directory.replace([pack], None)

    def merge_small(self) -> None:
        """Merge small packs if there are too many, unless another process is at it."""
        if not choose(self._mergeable()):
            return
        with self.lock:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if disk.try_lock(descriptor) is not False:  # two at once do no harm but work
                    self.refresh()
                    packs = choose(self._mergeable())
                    if busy := {pack for pack in packs if self.is_growing(pack)}:
                        packs = choose([p for p in self._mergeable() if p not in busy])
                    if packs and not any(self.is_growing(pack) for pack in packs):
                        self.replace(packs, merge(self.path, packs))
            except DamagedPackError as error:  # left as it is, for verify to find
                self._unmergeable.add(error.pack.name)
            finally:
                os.close(descriptor)

    def drop(self, keys: Collection[bytes]) -> None:
        """Write every pack that holds one of these multihashes anew without them."""
        with self.lock:
            for pack in list(self.packs.values()):
                if any(pack.index.find(key) is not None for key in keys):
                    self.replace([pack], merge(self.path, [pack], keys))

    @staticmethod
    def is_growing(pack: Pack) -> bool:
        """Tell whether the session that wrote a pack has not flushed since.

        It holds the lock of the file. Where the file system has none, nobody can tell.
        """
        try:
            descriptor = os.open(pack.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return disk.try_lock(descriptor, shared=True) is False
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Forget all packs."""
        with self.lock:
            self.directory.clear()
            self.packs.clear()
            self.damaged.clear()
            self._aside.clear()
            self._stamp = -1

    def after_fork(self, directory: Directory) -> None:
        """In a forked child: locks and directory may have been in use elsewhere."""
        self.lock = threading.RLock()
        self.directory = directory
        for pack in self.packs.values():
            directory.add(pack)

    def _mergeable(self) -> Collection[Pack]:
        left_alone = self._unmergeable | self.reserved
        return [pack for name, pack in list(self.packs.items()) if name not in left_alone]

    def replace(self, old: Sequence[Pack], new: Pack | None) -> None:
        """Put a new pack in the place of old ones, once its name is durable."""
        disk.fsync_folder(self.path)
        with self.lock:
            if new is not None:
                same = self.packs.get(new.name)  # another process merged the same packs
                if same is not None and same not in old:
                    old = [*old, same]
                self.packs[new.name] = new
            self.directory.replace(old, new)
            for pack in old:
                if new is None or pack.name != new.name:
                    disk.unlink(pack.path)
                    self.packs.pop(pack.name, None)
