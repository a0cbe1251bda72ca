"""Publishing again to a real node, after failures and beside others: what is sent and noted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import pytest
from running import Kubo
from test_publishing import filled, repo, there  # noqa: F401 (a fixture)

from cas_zarr.blocks.ipfsnode import Pin
from cas_zarr.blocks.kubo import KuboBlocks, KuboNode
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import CasZarrError, InvalidArgumentError, RemoteError
from cas_zarr.repository import sending
from cas_zarr.repository.expiring import expire
from cas_zarr.repository.published import published_at
from cas_zarr.repository.publishing import publish
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.unpublishing import unpublish
from cas_zarr.tree.walk import reachable

# ruff: noqa: F811 (a fixture)


class NoNames(KuboNode):
    """A node that does not publish names."""

    def name_publish(self, *_: object, **__: object) -> str:
        raise RemoteError(f"{self.location} has no peers")


def noted(repo: Repository, kubo: Kubo) -> set[CidBytes]:
    return {one.cid for one in published_at(repo.refs, kubo.rpc).entries}


def pin_name(kubo: Kubo, cid: CidBytes) -> str:
    return next(pin.name for pin in KuboNode(kubo.rpc).pins() if pin.cid == cid)


def fresh() -> int:
    """Return a seed, for chunks that the node does not have."""
    return int.from_bytes(os.urandom(6))


def test_what_was_pinned_is_noted_though_the_name_failed(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 10, seed=fresh()) as session:
        session.commit("first")
    root = repo.resolve("main").root
    with pytest.raises(RemoteError, match="has no peers"):
        publish(repo, to=NoNames(kubo.rpc), name="failing")
    assert noted(repo, kubo) == {root}
    again = publish(repo, to=kubo.rpc, name="failing")
    assert (again.blocks, again.requests) == (0, 3)
    assert [one.cid for one in unpublish(repo, kubo.rpc, version="main").unpinned] == [root]


@pytest.mark.parametrize("name", ["a/b", "x" * 300, "ä" * 150, "\udcff", "x" * 200])
def test_a_name_that_cannot_be_is_told_before_anything_is_sent(
    kubo: Kubo, repo: Repository, name: str
) -> None:
    with filled(repo, 10, seed=fresh()) as session:
        session.commit("first")
    node = KuboNode(kubo.rpc)
    with pytest.raises(CasZarrError):
        publish(repo, to=node, name=name)
    assert node.sent == 0
    assert not node.is_pinned(repo.resolve("main").root)


def test_a_pin_takes_the_name_of_the_last_publication(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 10, seed=fresh()) as session:
        session.commit("first")
    root = publish(repo, to=kubo.rpc).cid
    assert publish(repo, to=kubo.rpc, name="late").blocks == 0
    assert pin_name(kubo, root) == "late"
    assert publish(repo, to=kubo.rpc).requests <= 3
    assert pin_name(kubo, root) == "late"  # nothing was said of it
    assert unpublish(repo, kubo.rpc, version="main").unpinned


def test_a_pin_of_somebody_else_keeps_its_name(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 10, seed=fresh()) as session:
        session.commit("first")
    root = publish(repo, to=kubo.rpc).cid
    unpublish(repo, kubo.rpc, version="main")
    KuboNode(kubo.rpc).pin_add(root, name="theirs")
    assert publish(repo, to=kubo.rpc, name="mine").pinned
    assert pin_name(kubo, root) == "theirs"
    assert noted(repo, kubo) == set()


def test_pins_of_other_hashes_are_passed_over(kubo: Kubo, repo: Repository) -> None:
    theirs = kubo.run(
        *("dag", "put", "--store-codec", "dag-json", "--hash", "sha2-512", "--pin"), input=b"{}"
    ).strip()
    with filled(repo, 10, seed=fresh()) as session:
        session.commit("first")
    try:
        assert publish(repo, to=kubo.rpc).pinned
        assert unpublish(repo, kubo.rpc, version="main").unpinned
    finally:
        kubo.run("pin", "rm", theirs)


def test_a_changed_chunk_of_a_part_costs_a_path_of_pages(kubo: Kubo, repo: Repository) -> None:
    session = filled(repo, 3000, seed=fresh())
    session.commit("first")
    publish(repo, to=kubo.rpc, path="a")
    session.prepare()["a/c/3/7"] = b"another"
    session.commit("second")
    report = publish(repo, to=kubo.rpc, path="a")
    assert report.blocks <= 6
    assert report.requests <= 20
    session.close()


def test_a_history_brings_only_what_its_roots_lack(kubo: Kubo, repo: Repository) -> None:
    session = filled(repo, 700, seed=fresh())
    session.commit("first")
    session.prepare()["a/c/0/0"] = b"changed"
    session.commit("second")
    publish(repo, to=kubo.rpc)
    report = publish(repo, to=kubo.rpc, history=True)
    assert report.blocks <= 12  # two commits; a root, its pages, and the chunk that was changed
    assert there(kubo, repo, repo.resolve("main~1").root)
    session.prepare()["a/c/0/0"] = b"changed again"
    session.commit("third")
    assert publish(repo, to=kubo.rpc, history=True).blocks <= 6
    session.prepare()["a/c/0/0"] = b"and again"
    session.commit("fourth")
    assert publish(repo, to=kubo.rpc).blocks <= 6
    session.close()


def test_a_history_does_not_bring_twice_what_came_back(kubo: Kubo, repo: Repository) -> None:
    session = filled(repo, 30, seed=fresh())
    session.commit("first")
    older = {key: bytes(session.prepare()[key]) for key in session.prepare() if "/c/" in key}
    for key in older:
        del session.prepare()[key]
    session.commit("emptied")
    for key, value in older.items():
        session.prepare()[key] = value
    session.prepare()["note"] = b"back again"
    session.commit("again")
    report = publish(repo, to=kubo.rpc, history=True)
    commits = [entry.cid for entry in repo.log()]
    blocks = set(commits)
    for entry in repo.log():
        blocks |= {cid for _, cid in reachable(repo.blocks, entry.commit.root)}
    assert report.blocks == len(blocks)
    session.close()


def test_an_earlier_pin_that_goes_meanwhile_is_not_needed(kubo: Kubo, repo: Repository) -> None:
    session = filled(repo, 30, seed=fresh())
    session.commit("first")
    first = publish(repo, to=kubo.rpc).cid
    session.prepare()["a/c/0/0"] = b"changed"
    session.commit("second")
    report = publish(repo, to=kubo.rpc, progress=lambda *_: KuboNode(kubo.rpc).pin_rm(first))
    assert KuboNode(kubo.rpc).is_pinned(report.cid)
    session.close()


def test_a_part_that_went_while_one_alike_stayed_is_no_reason_to_take_a_pin_away(
    kubo: Kubo, repo: Repository
) -> None:
    """Two parts are alike, so they have one root and one pin."""
    data = os.urandom(20)
    session = repo.session("main")
    for part in "ab":
        session.prepare()[f"{part}/zarr.json"] = b"{}"
        session.prepare()[f"{part}/c/0"] = data
    session.commit("both")
    first = publish(repo, to=kubo.rpc, path="a")
    assert publish(repo, to=kubo.rpc, path="b").cid == first.cid
    for key in [key for key in session.prepare() if key.startswith("a/")]:
        del session.prepare()[key]
    session.commit("one")
    session.close()
    expire(repo, keep=1)
    assert unpublish(repo, kubo.rpc, expired=True).unpinned == ()
    assert KuboNode(kubo.rpc).is_pinned(first.cid)
    assert [one.path for one in unpublish(repo, kubo.rpc, version="main").unpinned] == ["a", "b"]
    assert not KuboNode(kubo.rpc).is_pinned(first.cid)


def test_what_cannot_be_read_here_is_not_taken_for_expired(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 30, seed=fresh()) as session:
        session.commit("first")
    part = publish(repo, to=kubo.rpc, path="a")
    whole = publish(repo, to=kubo.rpc)
    repo.blocks.delete(whole.root)
    repo.blocks.flush()
    with pytest.raises(CasZarrError, match=format_cid(whole.root)):
        unpublish(repo, kubo.rpc, expired=True)
    assert KuboNode(kubo.rpc).is_pinned(part.cid)


def test_a_token_goes_to_an_address(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 3, seed=fresh()) as session:
        session.commit("first")
    with pytest.raises(InvalidArgumentError, match="token"):
        publish(repo, to=KuboNode(kubo.rpc), token="s3cret")


class Forgetful(KuboNode):
    """A node whose list of pins breaks off, which only a trailer would tell."""

    def pins(self) -> Iterator[Pin]:
        return iter(())


def test_a_list_of_pins_that_breaks_off_takes_none_for_gone(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 3, seed=fresh()) as session:
        session.commit("first")
    root = publish(repo, to=kubo.rpc).cid
    with pytest.raises(RemoteError, match="all of its pins"):
        unpublish(repo, Forgetful(kubo.rpc), version="main")
    assert noted(repo, kubo) == {root}


def test_a_version_that_makes_no_directory_does_not_hide_which_views_expired(
    kubo: Kubo, repo: Repository
) -> None:
    session = filled(repo, 3, seed=fresh())
    session.commit("first")
    view = publish(repo, to=kubo.rpc, view="unixfs")
    session.prepare()["note"] = b"a file"
    session.prepare()["note/of"] = b"and a folder"
    session.commit("second")
    session.close()
    expire(repo, keep=1)
    taken = unpublish(repo, kubo.rpc, expired=True).unpinned
    assert {one.cid for one in taken} == {view.cid, view.root}


class Counted(KuboNode):
    """A node that keeps how large each CAR was."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.cars: list[int] = []

    def import_car(self, pieces: Iterable[bytes], *, pin_roots: bool = False) -> None:
        whole = list(pieces)
        self.cars.append(sum(map(len, whole)))
        super().import_car(whole, pin_roots=pin_roots)


def test_no_car_is_larger_than_it_may_be(
    kubo: Kubo, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "CAR_BYTES", 8 << 20)
    monkeypatch.setattr(sending, "_READ", 2)
    session = repo.session("main")
    for row in range(20):
        session.prepare()[f"{row}"] = os.urandom(1 << 20)
    session.commit("first")
    session.close()
    node = Counted(kubo.rpc)
    report = publish(repo, to=node)
    assert max(node.cars) <= 8 << 20
    assert len(node.cars) <= 6
    assert there(kubo, repo, report.root)


def test_a_view_is_taken_back_by_its_cid_wherever_its_block_is(
    kubo: Kubo, repo: Repository
) -> None:
    with filled(repo, 3, seed=fresh()) as session:
        session.commit("first")
    view = publish(repo, to=kubo.rpc, view="unixfs")
    repo.blocks.put(view.cid, KuboBlocks(kubo.rpc).get(view.cid))
    taken = unpublish(repo, kubo.rpc, version=format_cid(view.cid)).unpinned
    assert [one.cid for one in taken] == [view.cid]


def test_each_version_is_pinned_under_the_name(kubo: Kubo, repo: Repository) -> None:
    session = filled(repo, 30, seed=fresh())
    roots = []
    for number, name in enumerate(["one", "one", "two", None, "one"]):
        session.prepare()["a/c/0/0"] = b"%d" % number
        session.commit(f"commit {number}")
        roots.append(publish(repo, to=kubo.rpc, name=name).cid)
    session.close()
    assert [pin_name(kubo, root) for root in roots] == ["one", "one", "two", "", "one"]
