"""A state machine: two stores on one folder, against dicts."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cas_zarr.blocks import writer
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import HASHES, RAW, CidBytes, cid_of

_which = st.integers(0, 1)
_data = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda byte, size: byte * size, st.binary(min_size=1, max_size=1), st.integers(0, 700)
    ),
)


class BlocksMachine(RuleBasedStateMachine):
    """What a store must answer: what was flushed by anyone, and what it put itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(writer, "_RUN_LENGTH", 5)
        patch.setattr(writer, "_MAX_BLOCKS", 12)
        patch.setattr(writer, "_SLAB_SIZE", 300)
        patch.setattr(writer, "_DIRECT_SIZE", 200)
        self.folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.flushed: dict[CidBytes, bytes] = {}  # certainly visible to everyone
        self.pending: list[dict[CidBytes, bytes]] = [{}, {}]
        self.everything: dict[CidBytes, bytes] = {}
        self.stores = [LocalBlocks(self.folder), LocalBlocks(self.folder)]

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.stack.close()

    @initialize()
    def begin(self) -> None:
        assert list(self.stores[0].list()) == []

    @rule(which=_which, data=_data, function=st.sampled_from(list(HASHES.values())))
    def put(self, which: int, data: bytes, function: object) -> None:
        cid = cid_of(RAW, function, data)  # type: ignore[arg-type]
        memory = bytearray(data)
        self.stores[which].put(cid, memory)
        memory[:] = bytes(len(memory))
        if cid not in self.flushed:
            self.pending[which][cid] = data
        self.everything[cid] = data

    @rule(which=_which)
    def flush(self, which: int) -> None:
        self.stores[which].flush()
        self.flushed |= self.pending[which]
        self.pending[which] = {}

    @rule(which=_which)
    def reopen(self, which: int) -> None:
        self.stores[which].close()
        self.pending[which] = {}
        self.stores[which] = LocalBlocks(self.folder)

    @rule(which=_which, at=st.integers(0, 100))
    def delete(self, which: int, at: int) -> None:
        if not self.everything:
            return
        cid = sorted(self.everything)[at % len(self.everything)]
        other = self.stores[1 - which]
        other.close()  # it would go on reading from the packs it knows
        self.pending[1 - which] = {}
        self.stores[which].delete(cid)
        self.flushed |= self.pending[which]
        self.pending[which] = {}
        self.flushed.pop(cid, None)
        self.stores[1 - which] = LocalBlocks(self.folder)
        assert not self.stores[which].has(cid)
        assert not self.stores[1 - which].has(cid)

    @rule(which=_which, at=st.integers(0, 100))
    def get(self, which: int, at: int) -> None:
        held = self.flushed | self.pending[which]
        if held:
            cid = sorted(held)[at % len(held)]
            store = self.stores[which]
            assert store.get(cid) == held[cid]
            assert store.size(cid) == len(held[cid])
            out = bytearray(len(held[cid]))
            store.read_into(cid, memoryview(out))
            assert out == held[cid]

    @rule(which=_which)
    def compare(self, which: int) -> None:
        held = self.flushed | self.pending[which]
        store = self.stores[which]
        listed = list(store.list())
        assert len(listed) == len(set(listed))
        # a pack that was full has been sealed, so others may see more than was flushed
        assert set(held) <= set(listed) <= set(self.everything)
        assert list(store.get_many(listed)) == [self.everything[cid] for cid in listed]
        assert list(store.has_many(listed)) == [True] * len(listed)

    @invariant()
    def nothing_is_damaged(self) -> None:
        assert all(store.stats().damaged == () for store in self.stores)


TestBlocksMachine = BlocksMachine.TestCase
TestBlocksMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
