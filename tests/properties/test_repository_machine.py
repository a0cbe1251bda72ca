"""A whole repository beside a model of dicts: writers, histories, collections and exchanges.

Three actors work on one repository, two in this process and one in another, with sessions that
are open beside each other; a fourth has a clone. Whatever they do, each version that the model
says is there reads back, conflicts are exactly those of the model, and equal data have equal roots.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

pytest.importorskip("zarr", minversion="3.1")

from repository_actors import Actor
from repository_machine import BRANCHES, RepositoryBase, logged
from repository_model import Clash, Data, Delicate, Record, World, below, node_of, unite

from cas_zarr.cid import DAG_JSON, codec_of
from cas_zarr.errors import ConflictError, InvalidArgumentError
from cas_zarr.repository import history, sync
from cas_zarr.repository.versions import read_commit
from cas_zarr.tree.diff import diff
from cas_zarr.tree.keys import chunk_key
from cas_zarr.tree.walk import reachable

LOG_AGE = timedelta(days=30)
WAYS = {
    "go_apart_and_meet": 6,
    "combine_two": 4,
    "work": 2,
    "open_session": 3,
    "write": 3,
    "lean_and_collect": 4,
    "finish": 4,
    "move_refs": 3,
    "look_around": 3,
    "clean": 5,
    "share": 4,
}
"""What is done, and how often."""


class Torn(Exception):
    """Histories do not meet because one of them was cut."""


class RepositoryMachine(RepositoryBase):
    """Everything that can be done with a repository, in any order."""

    @rule(
        way=st.sampled_from([way for way, count in WAYS.items() for _ in range(count)]),
        seed=st.integers(0, 2**32 - 1),
    )
    def step(self, way: str, seed: int) -> None:
        """Do one thing; the seed says how, so that each of its parts is as likely as another."""
        getattr(self, way)(random.Random(seed))

    def work(self, dice: random.Random) -> None:
        """Write and commit or flush, in one go."""
        world = self.pick_world(dice)
        number = self.begin_work(dice, world, self.pick_branch(dice, world))
        self.edit(dice, number, dice.randint(1, 3))
        self.place_work(number, dice.random() < 0.5, dice.randint(0, 60), True)
        if number in self.writers:
            self.end(number)

    def go_apart_and_meet(self, dice: random.Random) -> None:
        """Let two branches go apart from where one is, and combine them."""
        world = self.pick_world(dice)
        model = self.worlds[world]
        names = dice.sample(BRANCHES, 2)
        _, start, found = self.pick(dice, world)
        for name in names:
            if name not in model.branches:
                self.pick_actor(dice, world).do("refs", "create_branch", name, start)
                self.place(world, name, Record(start, found))
            for _ in range(dice.randint(1, 2)):
                number = self.begin_work(dice, world, name)
                self.edit(dice, number, dice.randint(1, 3))
                self.place_work(number, dice.randint(0, 4) > 0, dice.randint(0, 60), True)
                if number in self.writers:
                    self.end(number)
        self.combine_two(dice)

    def combine_two(self, dice: random.Random) -> None:
        way = dice.choice(["merge", "merge", "replay_one", "rebase"])
        getattr(self, way)(dice)

    def move_refs(self, dice: random.Random) -> None:
        ways = ["create_branch", "delete_branch", "rename_branch", "reset", "reset", "tag"]
        getattr(self, dice.choice([*ways, "delete_tag"]))(dice)

    def look_around(self, dice: random.Random) -> None:
        ways = ["compare", "compare", "log", "log", "read_all"]
        getattr(self, dice.choice(ways))(dice)

    def lean_and_collect(self, dice: random.Random) -> None:
        """Collect while a session leans on garbage."""
        self.lean_on_garbage(dice)
        for _ in range(dice.randint(1, 3)):
            self.collect(dice)
        self.finish(dice)

    def clean(self, dice: random.Random) -> None:
        ways = ["collect", "collect", "collect", "expire", "repack", "reopen"]
        getattr(self, dice.choice(ways))(dice)

    def share(self, dice: random.Random) -> None:
        ways = ["clone"] if len(self.worlds) == 1 else ["fetch", "push", "push", "pull", "pull"]
        getattr(self, dice.choice(ways))(dice)

    # -- merging ----------------------------------------------------------------------------

    def merge(self, dice: random.Random) -> None:
        resolve = dice.choice([None, None, "ours", "theirs"])
        fast_forward = dice.random() < 0.5
        when = dice.randint(0, 60)
        world = self.pick_world(dice)
        model = self.worlds[world]
        into = self.pick_branch(dice, world)
        version, commit, found = self.pick_other(dice, world, into)
        record = model.branches[into]
        head = model.head(record)
        kind, parents = "merge", ()

        def expected() -> Data:
            nonlocal kind, parents
            if commit is None:
                kept = model.kept[version]
                united = unite(model.head(kept), head, found, resolve)
                kind = "already" if united == head else "merge"
                parents = () if record.commit is None else (record.commit,)
                return united
            bases = [] if record.commit is None else model.merge_bases(record.commit, commit)
            if model.is_torn(record.commit, commit):
                raise Torn
            if commit in bases:
                kind = "already"
                return head
            if record.commit is None or (record.commit in bases and fast_forward):
                kind = "fast-forward"
                return found
            parents = (record.commit, commit)
            return unite(model.between(record.commit, commit), head, found, resolve)

        message = f"merge {self.next()}"
        self.combine(
            dice,
            world,
            into,
            expected,
            lambda actor: actor.do(
                "merge",
                version,
                into=into,
                resolve=resolve,
                fast_forward=fast_forward,
                message=message,
                time=when,
            ),
            lambda result, united: self.merged(
                world, result, kind, parents, united, when, message, commit
            ),
            lambda: kind == "already",
        )

    def merged(
        self,
        world: int,
        result: Any,
        kind: str,
        parents: tuple[bytes, ...],
        data: Data,
        when: int,
        message: str,
        commit: bytes | None,
    ) -> None:
        assert result.kind == kind
        if kind == "merge":
            assert result.commits == (result.commit,)
            self.learn(world, result.commit, parents, data, when, message)
        elif kind == "fast-forward":
            assert result.commit == commit

    def replay_one(self, dice: random.Random) -> None:
        """Cherry-pick or revert a commit."""
        what = dice.choice(["cherry_pick", "revert"])
        resolve = dice.choice([None, "ours", "theirs"])
        world = self.pick_world(dice)
        model = self.worlds[world]
        into = self.pick_branch(dice, world)
        version, commit, found = self.pick(dice, world)
        if commit in model.cut:
            return
        record = model.branches[into]
        head = model.head(record)
        picked = self.commits[commit]
        before = self.commits[picked.parents[0]].data if picked.parents else {}
        message = f"{what} {self.next()}"
        when = picked.time if what == "cherry_pick" else 30
        options: dict[str, Any] = {"into": into, "resolve": resolve, "message": message}
        if what == "revert":
            options["time"] = when
        if len(picked.parents) > 1:
            options["parent"] = 1

        def expected() -> Data:
            if what == "cherry_pick":
                return unite(before, head, found, resolve)
            return unite(found, head, before, resolve)

        def done(result: Any, united: Data) -> None:
            if united == head:
                assert result.kind == "already"
                return
            assert result.kind == what.replace("_", "-")
            parents = () if record.commit is None else (record.commit,)
            self.learn(world, result.commit, parents, united, when, message)

        self.combine(
            dice,
            world,
            into,
            expected,
            lambda actor: actor.do(what, version, **options),
            done,
            lambda: expected() == head,
        )

    def rebase(self, dice: random.Random) -> None:
        resolve = dice.choice([None, "ours", "theirs"])
        world = self.pick_world(dice)
        model = self.worlds[world]
        branch = self.pick_branch(dice, world)
        version, tip, found = self.pick_other(dice, world, branch)
        if tip is None:
            return
        record = model.branches[branch]
        head = record.commit
        bases = [] if head is None else model.merge_bases(head, tip)
        made: list[tuple[bytes, Data]] = []  # the commits that are replayed, and what they make
        own = [] if head is None or head in bases or tip in bases else model.own(head, tip)
        if any(cid in model.cut for cid in own):
            return

        def expected() -> Data:
            made.clear()
            if model.is_torn(head, tip):
                raise Torn
            if tip in bases:
                return model.head(record)
            data = found
            for cid in own:
                parents = self.commits[cid].parents
                before = self.commits[parents[0]].data if parents else {}
                united = unite(before, data, self.commits[cid].data, resolve)
                if united != data:
                    made.append((cid, united))
                    data = united
            return data

        def done(result: Any, united: Data) -> None:
            assert united == (made[-1][1] if made else result_data(result))
            if tip in bases:
                assert result.kind == "already"
            elif head is None or head in bases:
                assert result.kind == "fast-forward"
            else:
                assert result.kind == "rebase"
                assert len(result.commits) == len(made)
                last = tip
                for cid, (old, data) in zip(result.commits, made, strict=True):
                    before = self.commits[old]
                    self.learn(world, cid, (last,), data, before.time, before.message)
                    last = cid
                assert result.commit == last

        def result_data(result: Any) -> Data:
            return self.commits[result.commit].data

        self.combine(
            dice,
            world,
            branch,
            expected,
            lambda actor: actor.do("rebase", branch, onto=version, resolve=resolve),
            done,
            lambda: tip in bases,
        )

    def combine(
        self,
        dice: random.Random,
        world: int,
        branch: str,
        expected: Callable[[], Data],
        act: Callable[[Any], Any],
        done: Callable[[Any, Data], None],
        nothing: Callable[[], bool],
    ) -> None:
        """Do what moves a branch to a new dataset; it conflicts where the model does."""
        model = self.worlds[world]
        record = model.branches[branch]
        united: Data | None
        work: Data | None = None
        try:
            united = expected()
            if not nothing():
                work = model.carried(record, united)
        except Clash:
            united = None
        except Delicate:
            return
        except Torn:
            with pytest.raises(InvalidArgumentError, match="have no commit in common here"):
                act(self.pick_actor(dice, world))
            self.look(world)
            return
        actor = self.pick_actor(dice, world)
        result = clash = None
        try:
            result = act(actor)
        except ConflictError as error:
            clash = error
        assert (united is None) == (clash is not None), clash
        if united is None:
            self.look(world)
            return
        done(result, united)
        if not nothing():
            self.place(world, branch, Record(result.commit, work))
        self.look(world)

    # -- looking ----------------------------------------------------------------------------

    def compare(self, dice: random.Random) -> None:
        moves = dice.random() < 0.5
        world = self.pick_world(dice)
        (one, _, a), (two, _, b) = (self.pick(dice, world, roots=True) for _ in range(2))
        repo = self.repo(world)
        views = [repo.at(version).view for version in (one, two)]
        differing = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        told: set[str] = set()
        for change in diff(*views, moves=moves):
            base = f"{change.path}/" if change.path else ""
            if change.status == "moved":
                part = below(b, change.path)
                old = below(a, change.source)
                assert {k[len(change.path) :]: v for k, v in part.items()} == {
                    k[len(change.source) :]: v for k, v in old.items()
                }
                told |= part.keys() | old.keys()
                continue
            told |= {base + name for name in (*change.docs, *change.keys)}
            for chunks in change.chunks:
                told |= {
                    base + chunk_key(chunks.form, tuple(row)) for row in chunks.coordinates.tolist()
                }
        # A chunk whose array came or went has moved to another owner: it is told though equal.
        extra = {key for key in told - differing if node_of(a, key) == node_of(b, key)}
        assert differing <= told
        assert not extra or moves

    def log(self, dice: random.Random) -> None:
        world = self.pick_world(dice)
        model = self.worlds[world]
        version, commit, _ = self.pick(dice, world)
        repo = self.repo(world)
        entries = list(history.log(repo, version))
        assert {entry.cid for entry in entries} == model.history(commit)
        assert len({entry.cid for entry in entries}) == len(entries)
        seen: set[bytes] = set()
        for entry in history.log(repo, version, topological=True):
            assert seen.isdisjoint(model.parents(entry.cid))
            seen.add(entry.cid)
        path = dice.choice(["a", "g", "g/b"])
        assert {entry.cid for entry in history.log(repo, version, path=path)} == {
            cid for cid in model.history(commit) if self.touches(model, cid, path)
        }
        other, second, _ = self.pick(dice, world)
        assert history.merge_bases(repo, version, other) == model.merge_bases(commit, second)
        assert history.is_ancestor(repo, version, other) == (commit in model.history(second))

    def touches(self, model: World, cid: bytes, path: str) -> bool:
        now = below(self.commits[cid].data, path)
        parents = model.parents(cid)
        if not parents:
            return bool(now)
        return all(below(self.commits[one].data, path) != now for one in parents)

    def read_all(self, dice: random.Random) -> None:
        self.check(self.pick_world(dice))

    def check(self, world: int) -> None:
        """Read every version back that must be there, with each of the actors in turn."""
        model = self.worlds[world]
        actors = self.actors[world]
        for number, cid in enumerate(sorted(model.reachable())):
            actor = actors[number % len(actors)]
            assert actor.do("read", cid) == self.commits[cid].data
        refs = self.repo(world).refs
        for move in refs.log():
            for record in (move.old, move.new):
                work = getattr(record, "work", None)
                if work is not None:
                    assert actors[0].read(work) == self.roots[work]
        self.look(world)
        for name, record in model.kept.items():
            assert actors[0].read(name) == model.shown(record)

    # -- cleaning ---------------------------------------------------------------------------

    def expire(self, dice: random.Random) -> None:
        keep = dice.randint(1, 4)
        world = self.pick_world(dice)
        model = self.worlds[world]
        before = model.reachable()
        near: set[bytes] = set()
        row = {one.commit for one in model.branches.values() if one.commit is not None}
        for _ in range(keep):
            near |= row
            row = {parent for cid in row for parent in model.parents(cid)}
        report = self.pick_actor(dice, world).do("expire", keep=keep)
        refs = self.repo(world).refs
        model.cut, model.logged = refs.shallow(), logged(refs.log())
        assert near | model.tips() <= model.history(*model.tips())
        assert before - model.reachable() == set(report.expired)
        for cid in model.reachable():  # a commit has all of its parents, or none
            assert cid in model.cut or set(self.commits[cid].parents) <= model.reachable()
        self.check(world)

    def collect(self, dice: random.Random) -> None:
        grace = timedelta(days=dice.randint(0, 1))
        log_age = dice.choice([LOG_AGE, timedelta(0)])
        later = dice.randint(0, 2)
        world = self.pick_world(dice)
        self.days += later
        now = time.time_ns() // 1000 + self.days * 86_400_000_000
        refs = self.repo(world).refs
        cutoff = now - log_age // timedelta(microseconds=1)
        left = [move for move in refs.log() if move.time >= cutoff]
        report = self.pick_actor(dice, world).do("collect", grace, log_age, now)
        assert refs.log() == left
        self.worlds[world].logged = logged(left)
        if report.deleted_blocks:
            for writer in self.writers.values():
                if writer.world == world:
                    writer.old = True
        self.check(world)

    def repack(self, dice: random.Random) -> None:
        world = self.pick_world(dice)
        self.pick_actor(dice, world).do("repack")
        self.check(world)

    def reopen(self, dice: random.Random) -> None:
        world = self.pick_world(dice)
        which = dice.randint(0, len(self.actors[world]) - 1)
        if not any((one.world, one.actor) == (world, which) for one in self.writers.values()):
            self.actors[world][which].do("reopen")
            self.look(world)

    # -- a second repository ----------------------------------------------------------------

    def clone(self, dice: random.Random) -> None:
        depth = dice.choice([None, None, 1, 2])
        source, place = self.worlds[0], self.folder / "second"
        sync.clone(self.repo(0), place, depth=depth, author="somebody").close()
        self.actors.append([Actor(str(place))])
        branches = {
            name: Record(one.commit, one.work if one.commit is None else source.head(one))
            for name, one in source.branches.items()
            if one != Record() or depth is None
        }
        refs = self.repo(1).refs
        model = World(self.commits, branches, {}, cut=refs.shallow())
        tips = {n: one.commit for n, one in branches.items() if one.commit is not None}
        model.tracked = {f"origin/{name}": cid for name, cid in tips.items()}
        model.tags = {name: refs.tag(name).commit for name in refs.tags()}
        if depth is None:
            assert model.tags == source.tags
        assert model.tags.items() <= source.tags.items()
        assert set(source.tags.values()) & model.history(*tips.values()) <= set(model.tags.values())
        model.logged = set(tips.values()) | set(model.tags.values())
        self.worlds.append(model)
        if depth is None:
            assert model.cut == source.cut & model.reachable()
            assert model.history(*model.tips()) == source.history(
                *(source.tags.values()), *tips.values()
            )
        self.check(1)

    def fetch(self, dice: random.Random) -> None:
        """Fetch into the clone."""
        depth = dice.choice([None, None, 9999])
        report = self.actors[1][0].do("fetch", "origin", depth=depth)
        self.fetched(report, sorted(self.worlds[0].branches))
        self.check(1)

    def fetched(self, report: Any, names: list[str]) -> None:
        source, model, refs = self.worlds[0], self.worlds[1], self.repo(1).refs
        tips = {
            name: one.commit
            for name, one in source.branches.items()
            if one.commit is not None and name in names
        }
        assert report.branches == tips
        model.tracked |= {f"origin/{name}": cid for name, cid in tips.items()}
        model.cut = refs.shallow()
        new = {name: cid for name, cid in source.tags.items() if name not in model.tags}
        assert report.tags.items() <= new.items()
        there = model.history(*model.tips())
        assert set(new.items()) - report.tags.items() <= {
            (name, cid) for name, cid in new.items() if cid not in there
        }
        model.tags |= report.tags
        model.logged |= set(report.tags.values())

    def push(self, dice: random.Random) -> None:
        """Push a branch of the clone."""
        force = dice.random() < 0.5
        source, target = self.worlds[1], self.worlds[0]
        branch = self.pick_branch(dice, 1)
        commit = source.branches[branch].commit
        if commit is None:
            return
        record = target.branches.get(branch)
        refused = False
        if record is not None and not force and record.commit != commit:
            behind = record.commit is None or record.commit in source.history(commit)
            refused = not behind or record.work not in (
                None,
                None if record.commit is None else target.head(record),
            )
        there = target.history(*target.tips())
        coming = self.missing(source, there, commit)
        torn = any(
            cid in source.cut and not set(self.commits[cid].parents) <= there | coming
            for cid in coming
        )
        clash = None
        try:
            self.actors[1][0].do("push", "origin", branches=[branch], force=force)
        except ConflictError as error:
            clash = error
        assert (refused or torn) == (clash is not None), clash
        if clash is not None:
            self.look(0)
            return
        source.tracked[f"origin/{branch}"] = commit
        if record is None or record.commit != commit:
            self.place(0, branch, Record(commit, self.commits[commit].data))
        self.look(1)
        self.check(0)

    def missing(self, source: World, there: set[bytes], tip: bytes) -> set[bytes]:
        found: set[bytes] = set()
        pending = [tip]
        while pending:
            cid = pending.pop()
            if cid not in there and cid not in found:
                found.add(cid)
                pending.extend(source.parents(cid))
        return found

    def pull(self, dice: random.Random) -> None:
        """Pull a branch into the clone."""
        when = dice.randint(0, 60)
        source, model = self.worlds
        branch = self.pick_branch(dice, 0)
        commit = source.branches[branch].commit
        if commit is None:
            return
        actor = self.actors[1][0]
        # What is fetched comes whatever becomes of the merge: fetch first, so the model has it.
        self.fetched(actor.do("fetch", "origin", branches=[branch]), [branch])
        if branch not in model.branches:
            actor.do("pull", "origin", branches=[branch])
            self.place(1, branch, Record(commit, self.commits[commit].data))
            return
        record = model.branches[branch]
        head = model.head(record)
        message = f"pull {self.next()}"
        bases = [] if record.commit is None else model.merge_bases(record.commit, commit)

        def expected() -> Data:
            if model.is_torn(record.commit, commit):
                raise Torn
            if commit in bases:
                return head
            if record.commit is None or record.commit in bases:
                return self.commits[commit].data
            return unite(model.between(record.commit, commit), head, self.commits[commit].data)

        def done(result: Any, united: Data) -> None:
            if record.commit is not None and bases != [commit] and bases != [record.commit]:
                parents = (record.commit, commit)
                self.learn(1, result.commit, parents, united, when, message)

        self.combine(
            dice,
            1,
            branch,
            expected,
            lambda one: one.do(
                "pull", "origin", branches=[branch], message=message, time=when
            ).merged[branch],
            done,
            lambda: commit in bases,
        )

    # -- the end ----------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if self.actors:
                self.leave_nothing()
        finally:
            for number in list(self.writers):
                self.end(number)
            for actor in (one for actors in self.actors for one in actors):
                actor.do("shut")
            shutil.rmtree(self.folder, ignore_errors=True)

    def leave_nothing(self) -> None:
        """At the end all is whole, and two collections leave only what is in use."""
        for number in list(self.writers):
            self.end(number)
        for world in range(len(self.worlds)):
            self.check(world)
            for actor in self.actors[world]:
                actor.do("reopen")
            repo = self.repo(world)
            for _ in range(2):
                now = time.time_ns() // 1000 + self.days * 86_400_000_000
                self.actors[world][0].collect(timedelta(0), timedelta(0), now + 1_000_000)
            self.worlds[world].logged = set()
            self.check(world)
            report = repo.verify(data=True)
            assert report.ok, report
            assert set(repo.blocks.list()) == set(needed(repo))


def needed(repo: Any) -> Iterator[bytes]:
    """Yield the blocks that refs lead to."""
    refs = repo.refs
    records = [refs.branch(name) for name in refs.branches()]
    records += [refs.kept(name) for name in refs.all_kept()]
    records += [refs.tag(name) for name in refs.tags()]
    records += [refs.tracked(name) for name in refs.all_tracked()]
    shallow = refs.shallow()
    pending = [one.commit for one in records if one.commit is not None]
    roots = {work for one in records if (work := getattr(one, "work", None)) is not None}
    seen: set[bytes] = set()
    while pending:
        cid = pending.pop()
        if cid not in seen:
            seen.add(cid)
            commit = read_commit(repo.blocks, cid)
            roots.add(commit.root)
            if cid not in shallow:
                pending.extend(commit.parents)
    yield from seen
    for root in roots:
        assert codec_of(root) == DAG_JSON
        yield from (cid for _, cid in reachable(repo.blocks, root))


class LongRepositoryMachine(RepositoryMachine):
    """The same, for longer."""


SETTINGS = {"suppress_health_check": list(HealthCheck)}

TestRepository = RepositoryMachine.TestCase
TestRepository.settings = settings(max_examples=20, stateful_step_count=30, **SETTINGS)
TestRepositoryAtLength = pytest.mark.slow(LongRepositoryMachine.TestCase)
TestRepositoryAtLength.settings = settings(max_examples=60, stateful_step_count=40, **SETTINGS)
