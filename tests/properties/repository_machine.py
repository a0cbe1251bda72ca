"""What the machine of test_repository_machine.py is built on: its state, and its sessions."""

from __future__ import annotations

import json
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zarr
from hypothesis.stateful import RuleBasedStateMachine, initialize
from repository_actors import Actor, RemoteActor, zarr_edit
from repository_model import (
    Clash,
    Data,
    Delicate,
    ModelCommit,
    Record,
    World,
    below,
    dump,
    exists,
    unite,
)
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from cas_zarr.cid import format_cid
from cas_zarr.errors import BlockNotFoundError, ConflictError, StorageError
from cas_zarr.repository.versions import read_commit
from cas_zarr.tree.keys import chunk_key

__all__ = ["BRANCHES", "NODES", "TAGS", "RepositoryBase", "logged"]

NODES = ["a", "b", "g", "g/a", "g/b", "h", "h/a"]
BRANCHES = ["main", "dev", "exp/1"]
TAGS = ["v1", "v2"]
FEW = [b"", b"x", b"w" * ((1 << 20) + 9)]


def _documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the documents of a group and of an array, as zarr makes them."""
    held: dict[str, Any] = {}
    store = MemoryStore(held)
    attributes = {"u": 0, "v": 0}
    zarr.create_group(store, zarr_format=3, attributes=attributes)
    zarr.create_array(
        store,
        name="a",
        shape=(2, 2),
        chunks=(1, 1),
        dtype="uint8",
        compressors=None,
        attributes=attributes,
    )
    texts = [held[key].to_bytes() for key in ("zarr.json", "a/zarr.json")]
    group, array = map(json.loads, texts)
    assert [dump(group), dump(array)] == texts
    return group, array


GROUP, ARRAY = _documents()


@dataclass
class Writer:
    """A session, as the model sees it."""

    world: int
    actor: int
    branch: str
    base: Record
    base_data: Data
    data: Data
    old: bool = False  # a collection has deleted something since it was opened


class RepositoryBase(RuleBasedStateMachine):
    """A repository beside its model, and sessions that write to it."""

    def __init__(self) -> None:
        super().__init__()
        # Nothing here dies, so a disk in memory will do.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="repository-machine", dir=memory))
        self.commits: dict[bytes, ModelCommit] = {}
        self.worlds = [World(self.commits)]
        self.actors: list[list[Any]] = []
        self.writers: dict[int, Writer] = {}
        self.roots: dict[bytes, Data] = {}
        self.root_of: dict[tuple[tuple[str, bytes], ...], bytes] = {}
        self.spent: list[bytes] = []
        self.number = 0
        self.days = 0

    @initialize()
    def begin(self) -> None:
        place = str(self.folder / "first")
        self.actors.append([Actor(place), Actor(place), RemoteActor(place)])
        actor = self.actors[0][0]
        actor.begin(0, "main")
        data = {"zarr.json": dump(GROUP), "a/zarr.json": dump(ARRAY), "a/c/0/0": b"x"}
        actor.edit(0, [("set", key, value) for key, value in data.items()])
        cid = actor.commit(0, "first", 0)
        actor.end(0)
        self.learn(0, cid, (), data, 0, "first")
        self.place(0, "main", Record(cid, data))

    # -- what the model keeps ---------------------------------------------------------------

    def next(self) -> int:
        self.number += 1
        return self.number

    def repo(self, world: int) -> Any:
        return self.actors[world][0].repo

    def learn(
        self,
        world: int,
        cid: bytes,
        parents: tuple[bytes, ...],
        data: Data,
        when: int,
        message: str,
    ) -> None:
        """Enter a commit that was made, and look at it."""
        model = ModelCommit(parents, data, when, message)
        assert self.commits.setdefault(cid, model) == model
        found = read_commit(self.repo(world).blocks, cid)
        assert (found.parents, found.time, found.message) == (parents, when, message)
        self.saw(world, found.root, data)

    def saw(self, world: int, root: bytes, data: Data) -> None:
        """Equal data, equal root; and the root reads back."""
        assert self.roots.setdefault(root, data) == data
        assert self.root_of.setdefault(tuple(sorted(data.items())), root) == root
        assert self.actors[world][0].read(root) == data

    def place(self, world: int, branch: str, new: Record | None, *, logged: bool = False) -> None:
        """Move a branch of the model, and look whether the real one is there.

        A move of the work alone is in the log only if it was made by hand.
        """
        model = self.worlds[world]
        old = model.branches.get(branch)
        before, after = (None if one is None else one.commit for one in (old, new))
        if before != after or old is None or new is None or logged:
            model.logged.update(cid for cid in (before, after) if cid is not None)
        if new is None:
            del model.branches[branch]
        else:
            model.branches[branch] = new
        self.look(world)

    def look(self, world: int) -> None:
        """Compare the refs and the log of them."""
        model, refs = self.worlds[world], self.repo(world).refs
        assert refs.branches() == sorted(model.branches)
        for name, record in model.branches.items():
            found = refs.branch(name)
            assert found.commit == record.commit
            if found.work is not None:
                self.saw(world, found.work, model.shown(record))
        assert {name: refs.tag(name).commit for name in refs.tags()} == model.tags
        assert {name: refs.tracked(name).commit for name in refs.all_tracked()} == model.tracked
        assert refs.all_kept() == sorted(model.kept)
        assert refs.shallow() == model.cut
        assert logged(refs.log()) == model.logged

    def versions(self, world: int, *, roots: bool = False) -> list[tuple[Any, bytes | None, Data]]:
        """Return version expressions, each with its commit and its data."""
        model = self.worlds[world]
        out: list[tuple[Any, bytes | None, Data]] = []
        for name, record in sorted(model.branches.items()):
            if record.commit is not None:
                out.append((name, record.commit, self.commits[record.commit].data))
        for name, cid in sorted(model.tags.items()):
            out.append((name, cid, self.commits[cid].data))
        order = list(self.commits)
        for cid in sorted(model.reachable(), key=order.index):
            out.append((cid, cid, self.commits[cid].data))
        if roots:
            for name, record in sorted(model.kept.items()):
                out.append((name, None, model.shown(record)))
        return out

    def pick(self, dice: random.Random, world: int, **options: Any) -> tuple[Any, bytes, Data]:
        return dice.choice(self.versions(world, **options))

    def pick_other(
        self, dice: random.Random, world: int, branch: str
    ) -> tuple[Any, bytes | None, Data]:
        """Pick a version, preferably the commit of another branch."""
        found = self.versions(world, roots=True)
        others = [one for one in found if one[0] in self.worlds[world].branches]
        others = [one for one in others if one[0] != branch]
        return dice.choice(others if others and dice.random() < 0.7 else found)

    def pick_branch(self, dice: random.Random, world: int) -> str:
        return dice.choice(sorted(self.worlds[world].branches))

    def pick_world(self, dice: random.Random) -> int:
        return dice.randint(0, len(self.worlds) - 1)

    def pick_actor(self, dice: random.Random, world: int) -> Any:
        number = dice.randint(0, len(self.actors[world]) - 1)
        return self.actors[world][number]

    # -- sessions ---------------------------------------------------------------------------

    def open_session(self, dice: random.Random) -> None:
        if len(self.writers) >= 3:
            return
        world = self.pick_world(dice)
        number = self.begin_work(dice, world, self.pick_branch(dice, world))
        self.edit(dice, number, dice.randint(1, 3))

    def begin_work(self, dice: random.Random, world: int, branch: str) -> int:
        number = self.next()
        which = dice.randint(0, len(self.actors[world]) - 1)
        record = self.worlds[world].branches[branch]
        shown = self.worlds[world].shown(record)
        assert self.actors[world][which].do("begin", number, branch) == shown
        self.writers[number] = Writer(world, which, branch, record, shown, dict(shown))
        return number

    def write(self, dice: random.Random) -> None:
        if self.writers:
            self.edit(dice, dice.choice(sorted(self.writers)), dice.randint(1, 4))

    def edit(self, dice: random.Random, number: int, count: int) -> None:
        writer = self.writers[number]
        edits = []
        shown = dict(writer.data)
        for _ in range(count):
            edit, shown = self.draw_edit(dice, writer.world, shown)
            if edit is not None:
                edits.append(edit)
        with self.outlived(number):
            actor = self.actors[writer.world][writer.actor]
            found = actor.do("edit", number, edits)
            writer.data = shown
        if number in self.writers:
            assert found == shown

    def lean_on_garbage(self, dice: random.Random) -> None:
        """Let a session write what was written and overwritten: it need not be stored again."""
        if len(self.writers) >= 4:
            return
        world = self.pick_world(dice)
        branch = self.pick_branch(dice, world)
        values = [self.draw_value(dice), self.draw_value(dice)]
        number = self.begin_work(dice, world, branch)
        for value in values:
            if number in self.writers:
                self.put(number, "note", value)
            if number in self.writers:
                self.place_work(number, False, 0, False)
        if number in self.writers:
            self.end(number)
        self.put(self.begin_work(dice, world, branch), "g/note", values[0])

    def put(self, number: int, key: str, value: bytes) -> None:
        writer = self.writers[number]
        shown = {**writer.data, key: value}
        with self.outlived(number):
            actor = self.actors[writer.world][writer.actor]
            assert actor.do("edit", number, [("set", key, value)]) == shown
        writer.data = shown

    def draw_edit(
        self, dice: random.Random, world: int, shown: Data
    ) -> tuple[tuple[Any, ...] | None, Data]:
        """Draw a change of a dataset; return it and what it makes."""
        kind = dice.choice(
            ["chunk"] * 6
            + ["key", "attribute", "array", "resize", "group", "delete", "remove"]
            + ["copy", "move", "attach", "zarr", "zarr"]
        )
        arrays = [path for path in NODES if is_array(shown, path)]
        new = dict(shown)
        if kind in ("chunk", "resize", "zarr") and not arrays:
            return None, shown
        if kind == "chunk":
            path = dice.choice(arrays)
            key = f"{path}/{chunk_key('c/2', (dice.randint(0, 3), dice.randint(0, 3)))}"
            new[key] = self.draw_value(dice)
            return ("set", key, new[key]), new
        if kind == "key":
            key = dice.choice(["note", "a/note", "g/note", "h/x/note"])
            new[key] = self.draw_value(dice)
            return ("set", key, new[key]), new
        if kind in ("attribute", "resize"):
            paths = arrays if kind == "resize" else ["", *NODES]
            path = dice.choice(paths)
            key = f"{path}/zarr.json" if path else "zarr.json"
            if key not in shown:
                return None, shown
            document = json.loads(shown[key])
            if kind == "attribute":
                name = dice.choice(["u", "v"])
                document["attributes"][name] = dice.randint(0, 3)
            else:
                document["shape"] = [dice.randint(0, 3), dice.randint(0, 3)]
            new[key] = dump(document)
            return ("set", key, new[key]), new
        if kind in ("array", "group"):
            path = dice.choice(NODES)
            document = GROUP
            if kind == "array":
                document = {**ARRAY, "data_type": dice.choice(["uint8", "int8"])}
            new[f"{path}/zarr.json"] = dump(document)
            return ("set", f"{path}/zarr.json", dump(document)), new
        if kind == "delete":
            keys = [key for key in sorted(shown) if not key.endswith("zarr.json")]
            if not keys:
                return None, shown
            del new[key := dice.choice(keys)]
            return ("delete", key), new
        if kind == "remove":
            path = dice.choice(NODES * 3 + [""])
            for key in below(shown, path):
                del new[key]
            return ("remove", f"{path}/" if path else ""), new
        if kind == "zarr":
            path = dice.choice(arrays)
            shape = json.loads(shown[f"{path}/zarr.json"])["shape"]
            what = dice.choice(["write", "resize", "attribute"])
            if what == "resize":
                arguments: tuple[Any, ...] = ((dice.randint(0, 3), dice.randint(0, 3)),)
            elif what == "attribute":
                arguments = (dice.randint(0, 3),)
            elif 0 in shape:
                return None, shown
            else:
                at = tuple(dice.randint(0, side - 1) for side in shape)
                arguments = (at, dice.randint(0, 3))
            held: dict[str, Any] = {k: cpu.Buffer.from_bytes(v) for k, v in shown.items()}
            zarr_edit(MemoryStore(held), path, what, *arguments)
            new = {key: value.to_bytes() for key, value in held.items()}
            return ("zarr", path, what, *arguments), new
        return self.draw_graft(dice, kind, world, shown)

    def draw_value(self, dice: random.Random) -> bytes:
        """Draw a value: a new one, or one that was written before and may be garbage by now."""
        if dice.random() < 0.2:
            return dice.choice(FEW)
        if not self.spent or dice.random() < 0.5:
            self.spent.append(b"%d " % len(self.spent) * dice.randint(1, 50))
        return dice.choice(self.spent[-8:])

    def draw_graft(
        self, dice: random.Random, kind: str, world: int, shown: Data
    ) -> tuple[tuple[Any, ...] | None, Data]:
        source, target = dice.choice(NODES), dice.choice(NODES)
        before, edit = shown, ()
        if kind == "attach":
            version, _, before = self.pick(dice, world, roots=True)
            name = version if isinstance(version, str) else format_cid(version)
            edit = ("attach", target, f"{name}:{source}")
        elif kind == "move" and (f"{target}/").startswith(f"{source}/"):
            return None, shown
        else:
            edit = (kind, source, target)
        part = below(before, source)
        if not part or max(key.count("/") for key in part) > 5:
            return None, shown
        new = dict(shown)
        if kind == "move":
            for key in part:
                del new[key]
        for key in [target, *below(shown, target)]:
            new.pop(key, None)
        new.update({target + key[len(source) :]: value for key, value in part.items()})
        return (*edit, {"overwrite": exists(shown, target)}), new

    def finish(self, dice: random.Random) -> None:
        """Flush or commit a session."""
        if not self.writers:
            return
        commit, leave = dice.random() < 0.5, dice.random() < 0.8
        when = dice.randint(0, 60)
        number = dice.choice(sorted(self.writers))
        self.place_work(number, commit, when, leave)

    def place_work(self, number: int, commit: bool, when: int, leave: bool) -> None:
        writer = self.writers[number]
        world = self.worlds[writer.world]
        actor = self.actors[writer.world][writer.actor]
        now = world.branches.get(writer.branch)
        moved = now != writer.base
        if not commit and writer.data == writer.base_data:
            with self.outlived(number):
                actor.do("flush", number)
            self.look(writer.world)
            return
        united: Data | None = writer.data
        if moved:
            theirs = world.shown(now)
            try:
                if now is None:
                    raise Clash("it is gone")
                if theirs not in (writer.base_data, writer.data):
                    united = unite(writer.base_data, writer.data, theirs)
            except Clash:
                united = None
            except Delicate:
                self.end(number)
                return
        message = f"commit {self.next()}"
        result = clash = None
        with self.outlived(number):
            try:
                if commit:
                    result = actor.do("commit", number, message, when)
                else:
                    result = actor.do("flush", number)
            except ConflictError as error:
                clash = error
        if number not in self.writers:
            return
        assert (united is None) == (clash is not None), clash
        if united is None:
            self.was_kept(number)
            return
        assert now is not None
        cid = now.commit
        if commit:
            cid = result
            parents = () if now.commit is None else (now.commit,)
            self.learn(writer.world, cid, parents, united, when, message)
        else:
            self.saw(writer.world, result, united)
        record = Record(cid, united)
        self.place(writer.world, writer.branch, record)
        writer.base, writer.base_data, writer.data = record, united, dict(united)
        if leave:
            self.end(number)

    def was_kept(self, number: int) -> None:
        """After a conflict: the root of the session has a name of its own."""
        writer = self.writers[number]
        world, refs = self.worlds[writer.world], self.repo(writer.world).refs
        new = set(refs.all_kept()) - world.kept.keys()
        assert len(new) <= 1
        for name in refs.all_kept():
            found = refs.kept(name)
            if name in new:
                world.kept[name] = Record(writer.base.commit, writer.data)
            elif self.roots.get(found.work) == writer.data:
                world.kept[name] = Record(found.commit, writer.data)
            else:
                continue
            if found.commit is not None:
                world.logged.add(found.commit)
            self.saw(writer.world, found.work, writer.data)
        self.end(number)
        self.look(writer.world)

    def end(self, number: int) -> None:
        writer = self.writers.pop(number)
        self.actors[writer.world][writer.actor].do("end", number)

    def outlived(self, number: int) -> Any:
        """Return a context in which a session may find that it is older than the grace time."""
        machine = self

        class Outlived:
            def __enter__(self) -> None: ...

            def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
                if isinstance(error, (StorageError, BlockNotFoundError)):
                    writer = machine.writers[number]
                    assert writer.old, error
                    refs = machine.repo(writer.world).refs
                    if set(refs.all_kept()) - machine.worlds[writer.world].kept.keys():
                        machine.was_kept(number)  # what it began with is gone, not what it has
                    else:
                        machine.end(number)
                    return True
                return False

        return Outlived()

    # -- branches and tags ------------------------------------------------------------------

    def create_branch(self, dice: random.Random) -> None:
        name = dice.choice(BRANCHES)
        world = self.pick_world(dice)
        version, commit, found = self.pick(dice, world)
        new = Record(commit, found)
        if dice.randint(0, 19) == 0:
            version, new = None, Record()
        actor = self.pick_actor(dice, world)
        if name in self.worlds[world].branches:
            with pytest.raises(ConflictError):
                actor.do("refs", "create_branch", name, version)
            return
        actor.do("refs", "create_branch", name, version)
        self.place(world, name, new)

    def delete_branch(self, dice: random.Random) -> None:
        world = self.pick_world(dice)
        if len(self.worlds[world].branches) > 1:
            name = self.pick_branch(dice, world)
            self.pick_actor(dice, world).do("refs", "delete_branch", name, force=True)
            self.place(world, name, None)

    def rename_branch(self, dice: random.Random) -> None:
        new = dice.choice(BRANCHES)
        world = self.pick_world(dice)
        old = self.pick_branch(dice, world)
        actor = self.pick_actor(dice, world)
        record = self.worlds[world].branches[old]
        if new in self.worlds[world].branches:
            with pytest.raises(ConflictError):
                actor.do("refs", "rename_branch", old, new)
            return
        actor.do("refs", "rename_branch", old, new)
        self.worlds[world].branches[new] = record
        self.place(world, old, None)

    def reset(self, dice: random.Random) -> None:
        force = dice.random() < 0.5
        world = self.pick_world(dice)
        model = self.worlds[world]
        branch = self.pick_branch(dice, world)
        version, commit, found = self.pick(dice, world)
        record = model.branches[branch]
        shown = model.shown(record)
        actor = self.pick_actor(dice, world)
        if not force and record.work not in (None, found, model.head(record)):
            with pytest.raises(ConflictError, match="has work that no commit has"):
                history_call(actor, "reset", branch, version)
            return
        history_call(actor, "reset", branch, version, force=force)
        if (record.commit, shown) != (commit, found):
            self.place(world, branch, Record(commit, found), logged=True)

    def tag(self, dice: random.Random) -> None:
        name = dice.choice(TAGS)
        what = dice.choice(["create", "move"])
        world = self.pick_world(dice)
        tags = self.worlds[world].tags
        version, commit, _ = self.pick(dice, world)
        actor = self.pick_actor(dice, world)
        if (name in tags) != (what == "move"):
            if what == "create":
                with pytest.raises(ConflictError):
                    actor.do("refs", "create_tag", name, version)
            else:
                what = "create"
        old = tags.get(name)
        if what == "create" and old is None:
            actor.do("refs", "create_tag", name, version)
        elif what == "move":
            actor.do("refs", "move_tag", name, version)
        else:
            return
        if old != commit:
            self.worlds[world].logged.update(cid for cid in (old, commit) if cid is not None)
        tags[name] = commit
        self.look(world)

    def delete_tag(self, dice: random.Random) -> None:
        name = dice.choice(TAGS)
        world = self.pick_world(dice)
        if name in self.worlds[world].tags:
            self.pick_actor(dice, world).do("refs", "delete_tag", name)
            self.worlds[world].logged.add(self.worlds[world].tags.pop(name))
            self.look(world)


def history_call(actor: Any, name: str, *arguments: Any, **options: Any) -> Any:
    return actor.do("history", name, *arguments, **options)


def is_array(data: Data, path: str) -> bool:
    document = data.get(f"{path}/zarr.json")
    return document is not None and json.loads(document)["node_type"] == "array"


def logged(moves: list[Any]) -> set[bytes]:
    """Return the commits that moves of refs name."""
    records = [record for move in moves for record in (move.old, move.new)]
    return {one.commit for one in records if one is not None and one.commit is not None}
