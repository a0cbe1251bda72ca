"""A mapping behaves as a dict, however it is used, and its root is that of the dict."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from test_law import keys, values

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.mapping import CASMapping
from cas_zarr.tree import page, shards, table, update
from cas_zarr.tree.apply import apply
from cas_zarr.tree.diff import diff
from cas_zarr.tree.merge import changes_of
from cas_zarr.tree.walk import reachable

prefixes = st.one_of(
    st.sampled_from(["", "a", "a/", "c/", "a/c/1", "0/", "z", "a/c", "b/", "/", "a/c/1/", "n1"]),
    keys.map(lambda key: key[:-1]),
)
paths = st.sampled_from(["", "a", "c", "a/c", "0", "a/c/1", "b", "a/b", "a/0", "é", "nothing"])


class MappingMachine(RuleBasedStateMachine):
    """Sets, deletes, flushes and reopenings of a mapping beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.blocks = MemoryBlocks()
        self.mapping = CASMapping(self.blocks)
        self.model: dict[str, bytes] = {}
        self.flushed: list[tuple[bytes, dict[str, bytes]]] = []

    @initialize(small=st.booleans(), settle=st.sampled_from([1, 5, 1000]))
    def begin(self, small: bool, settle: int) -> None:
        """Split pages and documents early, and apply changes early, or not."""
        if small:
            for module in (page, table, update):
                self.patch.setattr(module, "MAX_ENTRIES", 6)
            self.patch.setattr(shards, "SHARD_LIMIT", 600)
        self.settle = settle
        self.mapping._settle_at = settle

    @rule(key=keys, value=values)
    def put(self, key: str, value: bytes) -> None:
        self.mapping[key] = value
        self.model[key] = value

    @rule(folder=st.sampled_from(["a/", "b/", "", "c/"]), value=values, side=st.integers(1, 4))
    def put_a_grid(self, folder: str, value: bytes, side: int) -> None:
        for x in range(side):
            for y in range(side):
                self.put(f"{folder}c/{x}/{y}", value)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        del self.mapping[key]
        del self.model[key]

    @rule(key=keys)
    def discard(self, key: str) -> None:
        assert self.mapping.discard(key) == (key in self.model)
        self.model.pop(key, None)

    @rule(path=paths)
    def remove_folder(self, path: str) -> None:
        folder = f"{path}/" if path else ""
        self.mapping.discard_prefix(folder)
        self.model = {key: v for key, v in self.model.items() if not key.startswith(folder)}

    @rule(key=keys)
    def get(self, key: str) -> None:
        assert self.mapping.get(key) == self.model.get(key)
        assert (key in self.mapping) == (key in self.model)
        size = None if key not in self.model else len(self.model[key])
        assert self.mapping.size_of(key) == size

    @rule(prefix=prefixes)
    def list_keys(self, prefix: str) -> None:
        found = list(self.mapping.list_keys(prefix))
        assert sorted(found) == sorted(key for key in self.model if key.startswith(prefix))

    @rule(path=paths)
    def list_folder(self, path: str) -> None:
        folder = f"{path}/" if path else ""
        below = [key[len(folder) :] for key in self.model if key.startswith(folder)]
        assert list(self.mapping.list_folder(path)) == sorted({k.split("/")[0] for k in below})
        size = sum(len(v) for key, v in self.model.items() if key.startswith(folder))
        assert self.mapping.prefix_size(path) == size

    @rule()
    def flush(self) -> None:
        root = self.mapping.flush()
        assert not self.mapping.dirty
        self.flushed.append((root, dict(self.model)))

    @rule()
    def reopen(self) -> None:
        self.mapping = CASMapping(self.blocks, self.mapping.flush())
        self.mapping._settle_at = self.settle

    @precondition(lambda self: self.flushed)
    @rule(data=st.data())
    def compare_with_an_earlier_root(self, data: st.DataObject) -> None:
        root, model = data.draw(st.sampled_from(self.flushed))
        old = CASMapping(self.blocks, root)
        changes = changes_of(self.mapping.view, list(diff(old.view, self.mapping.view)))
        differing = {
            key for key in model.keys() | self.model.keys() if model.get(key) != self.model.get(key)
        }
        # a key whose owner came or went has moved: it is told though its value is the same
        assert differing <= changes.values.keys() | changes.docs.keys()
        assert apply(old.view, changes).cid() == self.mapping.view.root.cid()

    @invariant()
    def nothing_is_dirty_without_a_change(self) -> None:
        if self.flushed and self.mapping.root == self.flushed[-1][0] and not self.mapping.dirty:
            assert self.mapping.view.root.cid() == self.mapping.root

    def teardown(self) -> None:
        try:
            self.compare()
        finally:
            self.patch.undo()

    def compare(self) -> None:
        root = self.mapping.flush()
        read = CASMapping(self.blocks, root)
        assert dict(read.items()) == self.model
        assert sorted(self.mapping) == sorted(self.model)
        order = sorted(self.model)
        random.Random(len(order)).shuffle(order)
        fresh = CASMapping(MemoryBlocks())
        for key in order:
            fresh[key] = self.model[key]
        assert fresh.flush() == root
        reached = [cid for _, cid in reachable(self.blocks, root)]
        assert len(set(reached)) == len(reached)
        assert all(self.blocks.has(cid) for cid in reached)
        assert set(reached) == {cid for _, cid in reachable(fresh.blocks, root)}
        for earlier, model in self.flushed[-3:]:
            assert dict(CASMapping(self.blocks, earlier).items()) == model


TestMapping = MappingMachine.TestCase
TestMapping.settings = settings(max_examples=120, stateful_step_count=40)
