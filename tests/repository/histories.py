"""Histories for tests: commits with the parents, times and roots that a test asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cas_zarr.cid import CidBytes
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.repository import Repository

__all__ = ["History"]


class History:
    """A repository in memory whose commits are made by name.

    Attributes
    ----------
    repository : Repository
    cids : dict of str to CidBytes
    """

    def __init__(self, repository: Repository | None = None) -> None:
        self.repository = Repository.memory() if repository is None else repository
        self.repository.make()
        self.cids: dict[str, CidBytes] = {}
        self._mapping = self.repository.session("scratch").prepare()

    def root(self, values: Mapping[str, bytes]) -> CidBytes:
        """Return the root of a dataset with these keys."""
        self._mapping.clear()
        for key, value in values.items():
            self._mapping.set_value(key, value)
        return self._mapping.flush()

    def commit(
        self,
        name: str,
        *parents: str,
        time: int | None = None,
        values: Mapping[str, bytes] | None = None,
    ) -> CidBytes:
        """Make a commit; its message is its name, and the data too unless told otherwise."""
        cid, data = Commit(
            root=self.root({"n": name.encode()} if values is None else values),
            parents=tuple(self.cids[parent] for parent in parents),
            time=len(self.cids) if time is None else time,
            message=name,
        ).to_block()
        self.repository.blocks.put(cid, data)
        self.repository.blocks.flush()
        self.cids[name] = cid
        return cid

    def branch(self, branch: str, name: str) -> None:
        """Let a branch lead to a commit."""
        refs = self.repository.refs
        new = Branch(self.cids[name], self.repository.resolve(self.cids[name]).root)
        refs.update(branch, expected=refs.branch(branch), new=new)

    def names(self, cids: Sequence[CidBytes]) -> str:
        """Return the names of commits, with spaces between."""
        known = {cid: name for name, cid in self.cids.items()}
        return " ".join(known[cid] for cid in cids)
