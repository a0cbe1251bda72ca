"""Publishing to a real node: all arrives and is pinned, and no more is sent than has to be."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from running import Kubo

from cas_zarr.blocks.kubo import KuboBlocks, KuboNode
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.errors import (
    BlockNotFoundError,
    InvalidArgumentError,
    NotFoundError,
    RemoteError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository import sending
from cas_zarr.repository.published import list_places, published_at
from cas_zarr.repository.publishing import publish
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.session import Session
from cas_zarr.tree.walk import reachable


def filled(repo: Repository, count: int, *, size: int = 100, seed: int = 0) -> Session:
    """Return a session with an array of distinct chunks."""
    rng = np.random.default_rng(seed)
    session = repo.session("main")
    keys = session.prepare()
    keys["zarr.json"] = b'{"zarr_format":3,"node_type":"group"}'
    keys["a/zarr.json"] = b"{}"
    for row in range(count):
        keys[f"a/c/{row // 100}/{row % 100}"] = rng.bytes(size)
    return session


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.open(tmp_path / "r", create=True, author="t") as repo:
        yield repo


def there(kubo: Kubo, repo: Repository, root: CidBytes) -> bool:
    blocks = KuboBlocks(kubo.rpc)
    return all(blocks.has_many([cid for _, cid in reachable(repo.blocks, root)]))


def test_a_version_arrives_whole_is_pinned_and_costs_nothing_again(
    kubo: Kubo, repo: Repository
) -> None:
    with filled(repo, 1500) as session:
        session.prepare()["big"] = b"x" * (3 << 20)
        session.commit("first")
    told: list[tuple[int, int]] = []
    report = publish(repo, to=kubo.rpc, progress=lambda *now: told.append(now))
    assert report.root == report.cid == repo.resolve("main").root
    assert report.pinned
    assert there(kubo, repo, report.cid)
    blocks = {cid for _, cid in reachable(repo.blocks, report.root)}
    assert report.blocks == len(blocks)
    size = sum(repo.blocks.size(cid) for cid in blocks)
    assert report.size == size
    assert told[-1] == (report.blocks, report.size)
    assert f"{format_cid(report.cid)} recursive" in kubo.run("pin", "ls", "--type=recursive")
    again = publish(repo, to=kubo.rpc)
    assert (again.blocks, again.cid) == (0, report.cid)
    assert again.requests <= 3
    assert [place.location for place in list_places(repo.refs)] == [kubo.rpc]


@pytest.mark.parametrize("count", [1, 5, 40, 60, 600])
def test_the_node_sees_every_link_of_a_root(kubo: Kubo, repo: Repository, count: int) -> None:
    with filled(repo, count, seed=100 + count) as session:
        session.commit("first")
    root = publish(repo, to=kubo.rpc).root
    told = set(kubo.run("refs", "--recursive", "--unique", format_cid(root)).split())
    assert told == {format_cid(cid) for _, cid in reachable(repo.blocks, root)} - {format_cid(root)}


@pytest.mark.parametrize("recorded", [True, False])
def test_one_changed_chunk_costs_a_path_of_pages(
    kubo: Kubo, repo: Repository, recorded: bool
) -> None:
    session = filled(repo, 3000, seed=5 + recorded)  # a root that the node does not have
    session.commit("first")
    publish(repo, to=kubo.rpc)
    if not recorded:
        name = repo.refs.all_published()[0]
        assert repo.refs.swap_published(name, repo.refs.published(name), None)
    session.prepare()["a/c/3/7"] = b"another"
    session.commit("second")
    node = KuboNode(kubo.rpc)
    report = publish(repo, to=node)
    assert report.requests <= 20
    assert report.blocks <= 6
    assert node.sent <= 200_000
    assert there(kubo, repo, report.root)
    assert node.is_pinned(report.root)
    session.close()


def test_history_brings_all_commits_and_only_new_ones_later(kubo: Kubo, repo: Repository) -> None:
    session = filled(repo, 700, seed=7)
    commits: list[CidBytes] = []
    for n in range(4):
        session.prepare()["n"] = b"%d" % n
        session.prepare()["a/c/0/0"] = b"history %d" % n
        commits.append(session.commit(f"c{n}"))
    report = publish(repo, to=kubo.rpc, history=True)
    assert report.cid == commits[-1]
    blocks = KuboBlocks(kubo.rpc)
    assert all(blocks.has_many(commits))
    for n, commit in enumerate(commits):
        root = repo.resolve(format_cid(commit)).root
        assert CASMapping(blocks, root, read_only=True)["a/c/0/0"] == b"history %d" % n
    session.prepare()["n"] = b"new"
    session.commit("c4")
    more = publish(repo, to=kubo.rpc, history=True)
    assert more.blocks <= 5
    assert KuboNode(kubo.rpc).is_pinned(more.cid)
    assert publish(repo, to=kubo.rpc, history=True).blocks == 0
    session.close()


def test_a_group_is_published_as_a_dataset_of_its_own(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 5, seed=9) as session:
        session.commit("first")
    report = publish(repo, to=kubo.rpc, path="a")
    mapping = CASMapping(KuboBlocks(kubo.rpc), report.root, read_only=True)
    assert sorted(mapping) == ["c/0/0", "c/0/1", "c/0/2", "c/0/3", "c/0/4", "zarr.json"]
    with pytest.raises(NotFoundError, match="nowhere"):
        publish(repo, to=kubo.rpc, path="nowhere")
    with pytest.raises(InvalidArgumentError):
        publish(repo, to=kubo.rpc, path="a", history=True)


def test_a_view_of_files_shares_the_chunks_and_has_a_name(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 30, seed=11) as session:
        session.commit("first")
    publish(repo, to=kubo.rpc)
    report = publish(repo, to=kubo.rpc, view="unixfs", name="weather")
    assert report.cid != report.root
    assert report.blocks <= 8  # folders and documents
    assert report.ipns is not None
    assert kubo.run("name", "resolve", report.ipns).strip() == f"/ipfs/{format_cid(report.cid)}"
    assert kubo.run("cat", f"/ipns/{report.ipns}/a/zarr.json") == "{}"
    names = {pin.cid: pin.name for pin in KuboNode(kubo.rpc).pins()}
    assert names[report.cid] == "weather"
    kinds = {one.kind for one in published_at(repo.refs, kubo.rpc).entries}
    assert kinds == {"root", "unixfs"}


def test_of_what_the_node_lost_below_a_page_only_that_is_sent_again(
    kubo: Kubo, repo: Repository
) -> None:
    with filled(repo, 800, seed=13) as session:
        session.commit("first")
    report = publish(repo, to=kubo.rpc)
    node = KuboNode(kubo.rpc)
    for one in published_at(repo.refs, kubo.rpc).entries:
        node.pin_rm(one.cid)
    lost = next(cid for _, cid in reachable(repo.blocks, report.root) if cid[1] == 0x55)
    node.block_rm(lost)
    node.block_rm(report.root)
    again = publish(repo, to=kubo.rpc)
    assert again.blocks == 2
    assert node.is_pinned(report.root)
    assert there(kubo, repo, report.root)


def test_a_collection_at_the_node_leaves_all_that_was_published(
    kubo: Kubo, repo: Repository
) -> None:
    """Small trees have their top page in the root, where a node has to see its links."""
    with filled(repo, 30, seed=37) as session:
        session.commit("first")
    first = publish(repo, to=kubo.rpc)
    history = publish(repo, to=kubo.rpc, history=True)
    with filled(repo, 31, seed=38) as session:
        session.commit("second")
    second = publish(repo, to=kubo.rpc)
    kubo.run("repo", "gc", "-q")
    for report in (first, history, second):
        assert there(kubo, repo, report.root)


class CuttingProxy:
    """Hands bytes on to a server; cuts each connection once so many bytes went that way."""

    def __init__(self, url: str, *, cut: int | None) -> None:
        self.cut = cut
        self.cuts = 0
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            threading.Thread(target=self._up, args=(near, far), daemon=True).start()
            threading.Thread(target=self._hand, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        total = 0
        try:
            while data := near.recv(1 << 16):
                total += len(data)
                if self.cut is not None and total > self.cut:
                    self.cuts += 1
                    break
                far.sendall(data)
        except OSError:
            pass
        for one in (near, far):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _hand(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_PAUSES", (0.05, 0.1))


@pytest.mark.usefixtures("quickly")
def test_a_broken_connection_is_tried_again_and_then_told(
    kubo: Kubo, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(repo, 1500, size=6000, seed=17) as session:
        session.commit("first")
    proxy = CuttingProxy(kubo.rpc, cut=8 << 20)
    with pytest.raises(RemoteError, match="closed the connection"):
        publish(repo, to=proxy.url)
    assert proxy.cuts == 3
    proxy.close()
    report = publish(repo, to=kubo.rpc)
    assert 0 < report.blocks < 1400  # pages that had arrived were not sent again
    assert there(kubo, repo, report.root)
    with filled(repo, 1500, size=6000, seed=18) as session:
        session.commit("second")
    proxy = CuttingProxy(kubo.rpc, cut=4 << 20)
    monkeypatch.setattr(sending, "CAR_BYTES", 2 << 20)
    assert publish(repo, to=proxy.url).pinned  # a CAR of 2 MiB goes through
    proxy.close()


class NoImport(KuboNode):
    """A node that does not know dag/import."""

    def import_car(self, pieces: Iterable[bytes], *, pin_roots: bool = False) -> None:  # noqa: ARG002
        next(iter(pieces))
        raise RemoteError(f"{self.location} does not know dag/import", status=404)


def test_a_node_without_import_gets_block_by_block(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 100, seed=19) as session:
        session.commit("first")
    node = NoImport(kubo.rpc)
    report = publish(repo, to=node)
    assert there(kubo, repo, report.root)
    assert report.blocks >= len({cid for _, cid in reachable(repo.blocks, report.root)})


class Busy(KuboNode):
    """A node behind a proxy that says so first."""

    turned_away = 0

    def import_car(self, pieces: Iterable[bytes], *, pin_roots: bool = False) -> None:
        if self.turned_away < 2:
            self.turned_away += 1
            next(iter(pieces))
            raise RemoteError(f"{self.location}: dag/import failed", status=503)
        super().import_car(pieces, pin_roots=pin_roots)


@pytest.mark.usefixtures("quickly")
def test_a_server_that_is_busy_is_asked_again(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 10, seed=20) as session:
        session.commit("first")
    node = Busy(kubo.rpc)
    report = publish(repo, to=node)
    assert there(kubo, repo, report.root)
    assert node.turned_away == 2


def test_a_gateway_and_a_dead_address_are_told(
    kubo: Kubo, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_PAUSES", ())
    with filled(repo, 3, seed=23) as session:
        session.commit("first")
    with pytest.raises(RemoteError, match="gateway"):
        publish(repo, to=kubo.gateway)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RemoteError, match="nothing listens"):
        publish(repo, to=f"http://127.0.0.1:{port}")


def test_a_block_that_is_missing_here_is_told(kubo: Kubo, repo: Repository) -> None:
    with filled(repo, 30, seed=29) as session:
        session.commit("first")
    root = repo.resolve("main").root
    gone = next(cid for _, cid in reachable(repo.blocks, root) if cid[1] == 0x55)
    repo.blocks.delete(gone)
    repo.blocks.flush()
    with pytest.raises(BlockNotFoundError, match=format_cid(gone)):
        publish(repo, to=kubo.rpc)


@pytest.mark.slow
def test_one_chunk_of_a_hundred_thousand(kubo: Kubo, repo: Repository) -> None:
    session = filled(repo, 100_000, size=20, seed=31)
    session.commit("first")
    whole = publish(repo, to=kubo.rpc)
    assert whole.blocks > 100_000
    session.prepare()["a/c/333/33"] = b"y" * 1000
    session.commit("second")
    node = KuboNode(kubo.rpc)
    report = publish(repo, to=node)
    assert report.requests <= 20
    assert node.sent <= 200_000 + 1000
    session.close()
