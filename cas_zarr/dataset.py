"""What can be done with a dataset that zarr knows nothing of: versions, subtrees, forks, CIDs."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Self

from cas_zarr.cid import CidLike, format_cid, to_cid
from cas_zarr.errors import InvalidArgumentError, NotFoundError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.describe import NodeInfo, describe_node
from cas_zarr.repository.forking import Fork
from cas_zarr.repository.innerchunks import inner_box_cid, inner_chunk_cid
from cas_zarr.repository.prefetching import Prefetched, Progress, prefetch
from cas_zarr.repository.session import Session, View
from cas_zarr.repository.subtrees import Source, attach
from cas_zarr.tree.keys import OWNERS
from cas_zarr.tree.node import Value

if TYPE_CHECKING:
    from multiformats import CID

__all__ = ["Dataset"]


class Dataset:
    """A version of a dataset, or the working state of a branch: `CASStore`, without zarr."""

    _session: Session | Fork | View

    @property
    def mapping(self) -> CASMapping:
        """The keys and values, as a mapping."""
        return self._session.tree.mapping

    @property
    def session(self) -> Session | Fork | View:
        """The session behind this store, shared with its read-only siblings."""
        return self._session

    def _check_writable(self) -> None:
        """Raise ReadOnlyError if this cannot be written."""
        raise NotImplementedError

    def _of(self, fork: Fork) -> Self:
        """Return the same of a fork."""
        raise NotImplementedError

    # -- versions -----------------------------------------------------------------------------

    @property
    def root(self) -> CID | None:
        """The root as of the last flush; None before the first one of a new branch."""
        root = self._session.root
        return None if root is None else to_cid(root)

    def flush(self) -> CID:
        """Make all changes durable, show them to whoever opens the branch next.

        Returns
        -------
        CID
            The root: it names and verifies the whole dataset as it is now.

        Raises
        ------
        ConflictError
            If another writer changed the same things meanwhile. Their work stands, and this
            store's root is kept under a name that the message has.
        StorageError
            If the disk failed. Nothing that was flushed before is lost; flush again.
        """
        return to_cid(self._session.flush())

    def commit(self, message: str, **options: Any) -> CID:
        """Flush, and make the root a commit of the branch.

        Parameters
        ----------
        message : str
            What changed and why, at most 64 KiB.
        **options
            ``author``, ``metadata``, ``time``, ``rebase`` and ``sign``, as `Session.commit` has
            them.

        Returns
        -------
        CID
            The commit.
        """
        self._check_writable()
        return to_cid(self._session.commit(message, **options))

    def fork(self) -> Self:
        """Return a store for a worker: it can be pickled, and comes back with what it wrote.

        Nobody sees its writes until they are merged here and flushed or committed, all at once.
        Workers write the chunks of arrays that are there already.

        Examples
        --------
        >>> forks = client.gather(client.map(write, [store.fork()] * 8))  # doctest: +SKIP
        >>> store.merge(*forks)  # doctest: +SKIP
        >>> store.commit("written by eight")  # doctest: +SKIP
        """
        self._check_writable()
        return self._of(self._session.fork())

    def merge(self, *forks: Dataset) -> None:
        """Take over what forks of this store have written; see `Session.merge`.

        Raises
        ------
        ConflictError
            If two of them, or one and this store, wrote the same chunk differently; nothing is
            taken over then.
        InvalidArgumentError
            If one is no fork of this store.
        """
        self._check_writable()
        sessions = []
        for fork in forks:
            session = fork.session if isinstance(fork, Dataset) else None
            if not isinstance(session, Fork):
                raise InvalidArgumentError(
                    f"{fork!r} is no fork; give what `fork` has returned, one by one"
                )
            sessions.append(session)
        self._session.merge(sessions)

    def cid(
        self,
        path: str = "",
        box: tuple[slice | tuple[int, int], ...] | None = None,
        *,
        inner: bool = False,
    ) -> CID:
        """Return the CID of a node, or of a box of an array's chunks.

        Parameters
        ----------
        path : str
            The node; "" is the root.
        box : tuple of slices or of pairs of int, optional
            For an array, in chunks, one for each dimension.
        inner : bool
            Whether the box counts the inner chunks of shards. Its CID is that of the same chunks
            in an array without shards.
        """
        if inner:
            if box is None:
                raise InvalidArgumentError("inner chunks are named by a box of them; give one")
            return to_cid(inner_box_cid(self.mapping.view, path.strip("/"), box))
        return to_cid(self.mapping.cid(path, box))

    def cid_of_chunk(
        self, path: str, coordinates: Sequence[int], *, inner: bool = False
    ) -> CID | None:
        """Return the CID of a stored chunk, None where there is none and the fill value is read.

        Parameters
        ----------
        path : str
            The array.
        coordinates : sequence of int
            Of the chunk, in its grid; of a shard, where the array is sharded.
        inner : bool
            Whether they are those of an inner chunk of a shard, in the grid of all inner chunks.
            Its CID is the one that its bytes would have as a chunk of their own.

        Raises
        ------
        NotFoundError
            If there is no array at the path.
        InvalidArgumentError
            If it has another number of dimensions, or no shards where an inner chunk is asked for.
        """
        view, path, place = self.mapping.view, path.strip("/"), tuple(map(index, coordinates))
        node = view.node(path)
        if node is None or OWNERS.isdisjoint(node.docs):
            raise NotFoundError(f"there is no array {path!r}; list the dataset to see")
        info = describe_node(view.reader, node, path)
        if info.shape is not None and len(info.shape) != len(place):
            raise InvalidArgumentError(
                f"array {path!r} has {len(info.shape)} dimensions; give as many coordinates, not "
                f"{len(place)}"
            )
        if inner:
            cid = inner_chunk_cid(view, path, place)
            return None if cid is None else to_cid(cid)
        name = _chunk_name(info, place)
        value = view.find(f"{path}/{name}" if path else name)
        return to_cid(value.cid) if isinstance(value, Value) else None

    def __dask_tokenize__(self) -> tuple[str, str]:
        """Return what is equal where the data are: on any machine, at any time."""
        return "cas-zarr", format_cid(self.mapping.cid())

    # -- subtrees -------------------------------------------------------------------------------

    def copy(self, source: str, target: str, *, overwrite: bool = False) -> None:
        """Put a group or an array at another path too, without opening a chunk.

        Parameters
        ----------
        source, target : str
            Paths of nodes.
        overwrite : bool
            Replace what is at `target`.

        Raises
        ------
        NotFoundError
            If there is nothing at `source`.
        InvalidArgumentError
            If something is at `target`, or the path cannot take it.
        """
        self._check_writable()
        self._session.prepare().copy(source, target, overwrite=overwrite)

    def move(self, source: str, target: str, *, overwrite: bool = False) -> None:
        """Put a group or an array at another path instead; see `copy`."""
        self._check_writable()
        self._session.prepare().move(source, target, overwrite=overwrite)

    def attach(
        self,
        path: str,
        version: CidLike,
        *,
        source: Source | None = None,
        overwrite: bool = False,
    ) -> None:
        """Put any version of any dataset, or a part of it, at a path; see `Session.attach`."""
        self._check_writable()
        session = self._session
        attach(session.prepare(), session.repository, path, version, source, overwrite=overwrite)

    def prefetch(
        self,
        path: str = "",
        box: Sequence[slice | tuple[int | None, int | None] | int] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Prefetched:
        """Fetch a group, an array, or a box of an array into the cache, many chunks at once.

        Parameters
        ----------
        path : str
            "" is everything; ``"air/t2m[0:10, :]"`` is a box.
        box : sequence of slice, (start, stop) or int, optional
            A box of the array's index, in elements; sides that are left out are whole.
        progress : callable, optional
            Called with the chunks and the bytes that are here by now.

        Raises
        ------
        NotFoundError
            If there is nothing at the path.
        """
        return prefetch(self.mapping, path, box, progress=progress)


def _chunk_name(info: NodeInfo, place: tuple[int, ...]) -> str:
    """Return the name of a chunk in the folder of its array, as the array's metadata encode it."""
    v3 = info.documents.get("zarr.json")
    if v3 is None:
        encoding, kind = info.documents[".zarray"], "v2"
        separator = encoding.get("dimension_separator") if isinstance(encoding, dict) else None
    else:
        encoding = v3.get("chunk_key_encoding") if isinstance(v3, dict) else None
        encoding = encoding if isinstance(encoding, dict) else {"name": encoding}
        kind = "v2" if encoding.get("name") == "v2" else "default"
        options = encoding.get("configuration")
        separator = options.get("separator") if isinstance(options, dict) else None
    numbers = list(map(str, place))
    if kind == "v2":
        return ("/" if separator == "/" else ".").join(numbers) or "0"
    return ("." if separator == "." else "/").join(["c", *numbers])
