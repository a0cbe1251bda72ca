"""Guards: what a move of a ref may rely on while collections go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from collecting import NONE, collect_all, content, make, value, write

from cas_zarr.blocks.collectable import CollectableBlocks
from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.blocks.tiered import TieredBlocks
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of
from cas_zarr.errors import BlockNotFoundError, StorageError
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.gc import Collection, collect
from cas_zarr.repository.guard import Guard
from cas_zarr.repository.refs import Branch, GuardError, Tag
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import root_of

GARBAGE = {5: 1005, 6: 2006}


@pytest.fixture(params=["folder", "memory"])
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    return make(tmp_path / "r" if request.param == "folder" else f"memory://{tmp_path.name}")


def other(repo: Repository) -> Repository:
    return Repository.open(repo.location)


def build(repo: Repository, base: Branch | None, seeds: dict[int, int]) -> CidBytes:
    """Put and flush the blocks of a root that is not placed yet."""
    mapping = CASMapping(repo.blocks, root_of(repo.blocks, base))
    for chunk, seed in seeds.items():
        mapping[f"a/c/{chunk}"] = value(seed)
    root = mapping.flush()
    repo.blocks.flush()
    return root


def condemn(repo: Repository) -> None:
    assert collect(repo, log_age=NONE, max_unused=0).condemned_blocks > 0


def test_what_is_found_among_garbage_is_written_anew(repo: Repository) -> None:
    writer = other(repo)
    base = writer.refs.branch("main")
    guard = Guard(writer.blocks, writer.refs)
    new = Branch(base.commit if base else None, build(writer, base, GARBAGE))
    condemn(repo)
    with pytest.raises(GuardError):
        writer.refs.update("main", expected=base, new=new, guard=guard.record)
    guard.secure_move(new, base)
    with Collection(repo, log_age=NONE) as collection:
        collection.mark()  # before the branch leads to it
        writer.refs.update("main", expected=base, new=new, guard=guard.record)
        assert collection.sweep(NONE).blocks > 90
    assert repo.verify().ok
    assert new.work is not None
    assert dict(other(repo).at(new.work).items())["a/c/5"] == value(1005)


def test_a_young_copy_is_not_swept_before_a_ref_leads_to_it(repo: Repository) -> None:
    condemn(repo)
    writer = other(repo)
    base = writer.refs.branch("main")
    guard = Guard(writer.blocks, writer.refs)  # the list is pending: the garbage is not relied on
    new = Branch(base.commit if base else None, build(writer, base, GARBAGE))
    guard.secure_move(new, base)
    with Collection(repo, log_age=NONE) as collection:
        collection.mark()  # sees the young copies, which no ref leads to
        assert collection.sweep(NONE).blocks > 90
    with pytest.raises(GuardError):
        writer.refs.update("main", expected=base, new=new, guard=guard.record)
    guard.secure_move(new, base)
    writer.refs.update("main", expected=base, new=new, guard=guard.record)
    assert other(repo).verify().ok


def test_what_a_ref_came_to_lead_to_between_mark_and_list_stays(repo: Repository) -> None:
    writer = other(repo)
    base = writer.refs.branch("main")
    guard = Guard(writer.blocks, writer.refs)
    new = Branch(base.commit if base else None, build(writer, base, GARBAGE))
    with Collection(repo, log_age=NONE) as collection:
        collection.mark()
        guard.secure_move(new, base)
        writer.refs.update("main", expected=base, new=new, guard=guard.record)
        collection.publish()
        collection.mark()
        assert collection.sweep(NONE).blocks > 80
    assert repo.verify().ok


def test_a_commit_that_was_put_before_the_list_is_written_anew(repo: Repository) -> None:
    writer = other(repo)
    base = writer.refs.branch("main")
    assert base is not None
    assert base.commit is not None
    guard = Guard(writer.blocks, writer.refs)
    root = build(writer, base, {5: 8005})
    commit = Commit(root=root, parents=(base.commit,), author="", time=1, message="m")
    cid, data = commit.to_block(writer.function)
    writer.blocks.put(cid, data)
    writer.blocks.flush()
    condemn(repo)
    guard.secure_move(Branch(cid, root), base)
    with Collection(repo, log_age=NONE) as collection:
        collection.mark()
        writer.refs.update("main", expected=base, new=Branch(cid, root), guard=guard.record)
        collection.sweep(NONE)
    assert repo.verify().ok
    assert content(other(repo))["a/c/5"] == value(8005)


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_a_history_that_is_garbage_can_be_led_to_again(repo: Repository, kind: str) -> None:
    repo.create_branch("b", "main")
    for i in range(3):
        tip = write(repo, "b", {i: 4000 + i}, f"commit {i}")
    expected = content(repo, "b")
    repo.delete_branch("b")
    condemn(repo)
    writer = other(repo)
    guard = Guard(writer.blocks, writer.refs)
    guard.secure(tip)
    with Collection(repo, log_age=NONE) as collection:
        collection.mark()
        if kind == "tag":
            writer.refs.create_tag("b", Tag(tip), guard=guard.record)
        else:
            writer.refs.update("b", expected=None, new=Branch(tip), guard=guard.record)
        assert collection.sweep(NONE).blocks > 90
    fresh = other(repo)
    assert fresh.verify().ok
    assert content(fresh, "b") == expected
    assert len(list(fresh.log("b"))) == 5


def test_what_is_gone_is_said(repo: Repository) -> None:
    writer = other(repo)
    base = writer.refs.branch("main")
    guard = Guard(writer.blocks, writer.refs)
    root = build(writer, base, GARBAGE)
    collect_all(repo)
    new = Branch(base.commit if base else None, root)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"this session is older than.*write the data again"):
            guard.secure_move(new, base)
        with pytest.raises(GuardError):
            writer.refs.update("main", expected=base, new=new, guard=guard.record)


def test_what_was_collected_long_ago_is_said_where_it_is_asked_for(repo: Repository) -> None:
    root = build(repo, None, {1: 7001})
    collect_all(repo)
    guard = Guard(repo.blocks, repo.refs)
    guard.secure(root)  # nothing came since the guard was made: nothing is looked at
    with pytest.raises(StorageError, match="write the data again"):
        guard.secure(root, check=True)


def test_only_what_the_ref_itself_leads_to_is_passed_over(repo: Repository) -> None:
    base = repo.refs.branch("main")
    writer = other(repo)
    guard = Guard(writer.blocks, writer.refs)
    first = Branch(base.commit if base else None, build(writer, base, {7: 7007}))
    writer.refs.update("main", expected=base, new=first, guard=guard.record)
    repo.refs.update("main", expected=first, new=base)  # taken back: its blocks are garbage
    condemn(repo)
    guard.secure(first.work, since=base.work if base else None)
    with Collection(repo, log_age=NONE) as collection:
        collection.mark()
        writer.refs.update("main", expected=base, new=first, guard=guard.record)
        collection.sweep(NONE)
    assert repo.verify().ok


def test_without_a_list_a_look_reads_no_block(repo: Repository) -> None:
    reads: list[CidBytes] = []

    class Counted(MemoryBlocks):
        def _read(self, cid: CidBytes) -> bytes | None:
            reads.append(cid)
            return super()._read(cid)

    blocks = Counted()
    for cid in repo.blocks.list():
        blocks.put(cid, repo.blocks.get(cid))
    guard = Guard(blocks, repo.refs)
    main = repo.refs.branch("main")
    assert main is not None
    guard.secure(main.commit)
    guard.secure_move(Branch(main.commit), None)
    guard.secure(None)
    assert not reads
    guard.secure(main.commit, check=True)
    assert reads
    assert guard.record == repo.refs.gc_record()


def test_with_a_list_a_look_costs_what_changed(repo: Repository) -> None:
    condemn(repo)
    base = repo.refs.branch("main")
    guard = Guard(repo.blocks, repo.refs)
    new = Branch(base.commit if base else None, build(repo, base, {7: 7007}))
    batches: list[int] = []
    renew = guard._renew

    def counted(batch: list[CidBytes], *, swept: bool) -> None:
        batches.append(len(batch))
        renew(batch, swept=swept)

    guard._renew = counted  # type: ignore[method-assign]
    guard.secure_move(new, base)
    assert batches == [3]  # root, page, chunk


def test_a_clone_of_parts_relies_on_what_is_behind_it(repo: Repository) -> None:
    behind = MemoryBlocks()
    local = MemoryBlocks()
    data = value(1)
    chunk = cid_of(RAW, BLAKE3, data)
    mapping = CASMapping(behind)
    mapping["a/zarr.json"] = b"{}"
    mapping["a/c/0"] = data
    root = mapping.flush()
    local.put(root, behind.get(root))
    guard = Guard(TieredBlocks(local, [behind]), repo.refs)
    guard.secure(root, check=True)
    assert not local.has(chunk)
    with pytest.raises(StorageError):
        Guard(local, repo.refs).secure(root, check=True)


def test_lists_of_an_older_epoch_are_passed_over(repo: Repository) -> None:
    condemn(repo)
    blocks = repo.blocks
    assert isinstance(blocks, CollectableBlocks)
    Guard(blocks, repo.refs)
    (known,) = blocks._condemned
    blocks.avoid([], 0)
    assert blocks._condemned == (known,)
    blocks.avoid([], 2)
    assert blocks._condemned == ()


def test_a_list_that_is_not_there_is_said(repo: Repository) -> None:
    assert isinstance(repo.blocks, CollectableBlocks)
    with pytest.raises(BlockNotFoundError, match="no list"):
        repo.blocks.read_list("00" * 16)
