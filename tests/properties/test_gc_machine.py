"""Collections beside writers: whatever a ref leads to is complete, and garbage goes in the end.

Writers deduplicate against garbage, stop between any two of their steps, and move refs to versions
that no ref leads to any more; collections are stopped between their steps; packs are merged and
repositories opened anew. The clock is the test's.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from cas_zarr.blocks.collectable import CollectableBlocks
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.errors import BlockNotFoundError, ConflictError, StorageError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.gc import Collection, repack
from cas_zarr.repository.guard import CollectionRecord, Guard
from cas_zarr.repository.refs import Branch, GuardError, Tag
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import read_commit, root_of
from cas_zarr.tree import chunktree, node, page, table, update
from cas_zarr.tree.walk import reachable

GROUP = b'{"zarr_format":3,"node_type":"group"}'
ARRAY = b'{"zarr_format":3,"node_type":"array"}'
VALUES = [bytes([i]) * 40 for i in range(3)]
BRANCHES = ["main", "b", "c"]
PLACES = 3
GRACE = timedelta(microseconds=10)

STEPS = [
    *("open_writer", "go_on", "go_on", "go_on", "write_at_once", "write_at_once"),
    *("delete", "lead_to", "collect", "collect", "collect", "tend"),
]

branches = st.sampled_from(BRANCHES)

Content = dict[str, bytes]


@dataclass
class Writer:
    """A writer of a branch that can be stopped between its steps."""

    place: int
    branch: str
    expected: Branch | None
    guard: Guard
    epoch: int  # of collections, when it began
    mapping: CASMapping
    model: Content
    new: Branch | None = None  # put and flushed
    secured: bool = False


class GCMachine(RuleBasedStateMachine):
    """Writers, refs and collections of one repository."""

    memory = False

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.folder = Path(tempfile.mkdtemp(prefix="cas-zarr-gc-"))
        self.location = f"memory://{self.folder.name}" if self.memory else str(self.folder / "r")
        self.writers: list[Writer] = []
        self.collection: Collection | None = None
        self.marked = False
        self.now = 1
        self.commits = 0
        self.contents: dict[CidBytes, Content] = {}  # of every root that was ever made
        self.known: list[CidBytes] = []  # commits that were ever made
        self.last_swept = 0  # epoch of the youngest list that was swept

    @initialize(small=st.booleans())
    def begin(self, small: bool) -> None:
        """Have pages as blocks of their own, or embedded."""
        if small:
            for module in (page, table, update):
                self.patch.setattr(module, "MAX_ENTRIES", 4)
            for module in (chunktree, node):
                self.patch.setattr(module, "EMBED_LIMIT", 150)
        self.repos = [Repository.open(self.location, create=True) for _ in range(PLACES)]

    def teardown(self) -> None:
        try:
            if hasattr(self, "repos"):
                self.finish()
        finally:
            for repo in getattr(self, "repos", []):
                repo.close()
            self.patch.undo()
            shutil.rmtree(self.folder)

    @property
    def refs(self):  # type: ignore[no-untyped-def]
        return self.repos[0].refs

    def epoch(self) -> int:
        return CollectionRecord.from_bytes(self.refs.gc_record()).epoch

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Take one of the steps.

        It is one rule, for Hypothesis leaves out rules at random, and a race needs most of them.
        """
        getattr(self, data.draw(st.sampled_from(STEPS)))(data)

    # -- writers ------------------------------------------------------------------------------

    def open_writer(self, data: st.DataObject) -> Writer | None:
        if len(self.writers) == 4:
            return None
        place, branch = data.draw(st.integers(0, PLACES - 1)), data.draw(branches)
        repo = self.repos[place]
        guard = Guard(repo.blocks, repo.refs)
        expected = repo.refs.branch(branch)
        root = root_of(repo.blocks, expected)
        model = {} if root is None else dict(self.contents[root])
        mapping = CASMapping(repo.blocks, root)
        writer = Writer(place, branch, expected, guard, self.epoch(), mapping, model)
        self.writers.append(writer)
        return writer

    def go_on(self, data: st.DataObject) -> None:
        """Take the next steps of a writer: put, secure, move."""
        if not self.writers:
            self.open_writer(data)
        writer = data.draw(st.sampled_from(self.writers))
        for _ in range(data.draw(st.integers(1, 3))):
            if writer.secured:
                self.move(writer)
            elif writer.new:
                self.secure(writer)
            else:
                self.put(writer, data)
            if writer not in self.writers:
                break

    def write_at_once(self, data: st.DataObject) -> None:
        """Take all steps of a writer, and perhaps make garbage of what it has written."""
        writer = self.open_writer(data)
        if writer is None:
            return
        self.put(writer, data)
        if writer.new:
            self.secure(writer)
        if writer.secured:
            self.move(writer)
        if writer in self.writers:
            self.writers.remove(writer)
        if data.draw(st.booleans()):
            self.delete(data, writer.branch)

    def put(self, writer: Writer, data: st.DataObject) -> None:
        """Put and flush all blocks of the next state of a branch."""
        start, count = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 5]))
        value = data.draw(st.sampled_from(VALUES))
        items: Content = {"zarr.json": GROUP, "a/zarr.json": ARRAY}
        items |= {f"a/c/{i}": value for i in range(start, start + count)}
        commit = data.draw(st.booleans())
        repo = self.repos[writer.place]
        with self.excused(writer):
            for key, item in items.items():
                writer.mapping[key] = item
            writer.model |= items
            root = writer.mapping.flush()
            new = Branch(writer.expected.commit if writer.expected else None, root)
            if commit:
                self.commits += 1
                parents = () if new.commit is None else (new.commit,)
                # few of them differ, so that commits are found as garbage too
                made = Commit(
                    root=root, parents=parents, author="a", time=self.commits % 3, message="m"
                )
                cid, block = made.to_block(repo.function)
                repo.blocks.put(cid, block)
                self.known.append(cid)
                new = Branch(cid, root)
            repo.blocks.flush()
            self.contents[root] = dict(writer.model)
            writer.new, writer.secured = new, False

    def secure(self, writer: Writer) -> None:
        with self.excused(writer):
            writer.guard.secure_move(writer.new, writer.expected)
            writer.secured = True

    def move(self, writer: Writer) -> None:
        try:
            self.repos[writer.place].refs.update(
                writer.branch,
                expected=writer.expected,
                new=writer.new,
                guard=writer.guard.record,
            )
        except GuardError:
            writer.secured = False
        except ConflictError:
            self.writers.remove(writer)
        else:
            writer.expected, writer.new, writer.secured = writer.new, None, False

    # -- refs ---------------------------------------------------------------------------------

    def delete(self, data: st.DataObject, branch: str | None = None) -> None:
        branch = branch or data.draw(branches)
        refs = self.refs
        record, tag = refs.branch(branch), refs.tag("t")
        if record is not None:
            refs.update(branch, expected=record, new=None)
        if tag is not None and data.draw(st.booleans()):
            refs.delete_tag("t", expected=tag)

    def lead_to(self, data: st.DataObject) -> None:
        """Let a branch or a tag lead to a commit that may be garbage, or gone."""
        if not self.known:
            return
        repo = self.repos[data.draw(st.integers(0, PLACES - 1))]
        cid = data.draw(st.sampled_from(self.known))
        branch = data.draw(branches)
        guard = Guard(repo.blocks, repo.refs)
        refs, expected = repo.refs, repo.refs.branch(branch)
        try:
            root = read_commit(repo.blocks, cid).root
            guard.secure(cid, check=True)
            if data.draw(st.booleans()):
                refs.update(branch, expected=expected, new=Branch(cid, root), guard=guard.record)
            elif refs.tag("t") is None:
                refs.create_tag("t", Tag(cid), guard=guard.record)
        except (BlockNotFoundError, StorageError):  # it was collected
            assert self.last_swept

    # -- collections ----------------------------------------------------------------------------

    def collect(self, data: st.DataObject) -> None:
        """Take the next steps of a collection: begin, publish, mark again, sweep."""
        place = data.draw(st.integers(0, PLACES - 1))
        max_unused = data.draw(st.sampled_from([0.0, 0.0, 0.3]))
        grace = data.draw(st.sampled_from([GRACE, timedelta(0)]))
        self.now += data.draw(st.sampled_from([1, 11]))
        for _ in range(data.draw(st.sampled_from([1, 1, 2, 4]))):
            if self.collection is None:
                self.begin_collection(place, max_unused)
            elif not self.pending():
                self.marked = not self.collection.publish()
                if self.marked:
                    break
            elif not self.marked:
                self.collection.mark()
                self.marked = True
            else:
                self.collection.sweep(grace)
                if not self.pending():
                    self.last_swept = self.epoch()
                break
        if data.draw(st.booleans()):
            self.end_collection()

    def begin_collection(self, place: int, max_unused: float) -> None:
        self.collection = Collection(
            self.repos[place],
            max_unused=max_unused,
            log_age=timedelta(0),
            clock=lambda: self.now + 2**60,  # all of the log is old
        )
        self.collection.__enter__()
        self.collection.mark()
        self.marked = True

    def end_collection(self) -> None:
        assert self.collection is not None
        self.collection.tidy()
        self.collection.__exit__(None, None, None)
        self.collection = None
        self.marked = False

    # -- places -------------------------------------------------------------------------------

    def tend(self, data: st.DataObject) -> None:
        """Merge packs, write them anew, or open a repository anew."""
        what = data.draw(st.sampled_from(["flush", "tidy", "repack", "reopen", "leave"]))
        place = data.draw(st.integers(0, PLACES - 1))
        repo = self.repos[place]
        if what == "flush":
            repo.blocks.flush()
        elif what == "tidy":
            repo.blocks.tidy()
        elif what == "repack" and self.collection is None:
            repack(repo)
        elif what == "leave":
            self.writers = [one for one in self.writers if one.place != place]
        elif what == "reopen" and self.collection is None and not self.memory:
            self.reopen(place)

    def reopen(self, place: int) -> None:
        self.repos[place].close()
        self.repos[place] = Repository.open(self.location)
        self.writers = [one for one in self.writers if one.place != place]

    # -- what holds -----------------------------------------------------------------------------

    @invariant()
    def whatever_a_ref_leads_to_is_complete(self) -> None:
        if not hasattr(self, "repos"):
            return
        if self.memory:
            self.check(self.repos[0].blocks)
        else:
            with LocalBlocks(self.folder / "r" / "packs", read_only=True) as blocks:
                self.check(blocks)

    def check(self, blocks) -> None:  # type: ignore[no-untyped-def]
        checked: set[CidBytes] = set()
        for name in self.refs.branches():
            record = self.refs.branch(name)
            self.check_commit(blocks, record.commit, checked)
            if record.work is not None:
                self.check_root(blocks, record.work, checked)
        for name in self.refs.tags():
            self.check_commit(blocks, self.refs.tag(name).commit, checked)
        self.used = checked

    def check_commit(self, blocks, cid, checked: set[CidBytes]) -> None:  # type: ignore[no-untyped-def]
        while cid is not None and cid not in checked:
            checked.add(cid)
            commit = read_commit(blocks, cid)
            self.check_root(blocks, commit.root, checked)
            cid = commit.parents[0] if commit.parents else None

    def check_root(self, blocks, root: CidBytes, checked: set[CidBytes]) -> None:  # type: ignore[no-untyped-def]
        if root not in checked:
            mapping = CASMapping(blocks, root, read_only=True)
            assert dict(mapping.items()) == self.contents[root]
            checked.update(cid for _, cid in reachable(blocks, root))

    def finish(self) -> None:
        """After all writers have ended, two collections leave what refs lead to and no more."""
        if self.collection is not None:
            self.end_collection()
        self.writers.clear()
        if self.memory:
            self.repos[0].blocks.flush()  # what is in memory is spared until then
        else:
            for place in range(PLACES):
                self.reopen(place)
        for _ in range(2):
            with Collection(
                self.repos[1], log_age=timedelta(0), clock=lambda: self.now + 2**60
            ) as collection:
                collection.mark()
                collection.sweep(timedelta(0))
                collection.publish()
                collection.mark()
                collection.sweep(timedelta(0))
        self.whatever_a_ref_leads_to_is_complete()
        blocks = self.repos[0].blocks
        assert isinstance(blocks, CollectableBlocks)
        assert set(blocks.list()) == self.used

    # ---------------------------------------------------------------------------------------

    def pending(self) -> bool:
        return bool(CollectionRecord.from_bytes(self.refs.gc_record()).lists)

    def excused(self, writer: Writer) -> _Excused:
        return _Excused(self, writer)


class _Excused:
    """A writer may fail, and say so, if what it relied on was condemned after it began."""

    def __init__(self, machine: GCMachine, writer: Writer) -> None:
        self.machine = machine
        self.writer = writer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> bool:
        if kind is None or not issubclass(kind, BlockNotFoundError | StorageError):
            return False
        if self.machine.last_swept > self.writer.epoch:
            self.machine.writers.remove(self.writer)
            return True
        return False


class MemoryGCMachine(GCMachine):
    """The same in memory."""

    memory = True


TestFolder = GCMachine.TestCase
TestFolder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemory = MemoryGCMachine.TestCase
TestMemory.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.mark.slow
class TestLong(GCMachine.TestCase):  # type: ignore[misc, name-defined]
    """More of the same."""

    settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
