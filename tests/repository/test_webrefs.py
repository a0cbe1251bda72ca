"""Repositories behind a gateway: what they say is checked strictly, and read anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cas_zarr import Repository
from cas_zarr.blocks.http import HttpClient
from cas_zarr.cid import DAG_CBOR, SHA256, Link, cid_of
from cas_zarr.codecs import dagjson
from cas_zarr.errors import (
    CasZarrError,
    ReadOnlyError,
    RemoteError,
    RepositoryNotFoundError,
    VersionNotFoundError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.refs import Branch, Tag
from cas_zarr.repository.versions import Commits, resolve
from cas_zarr.repository.webrefs import REFS_PATH, WebRefs, describe_refs, open_web
from cas_zarr.server.running import serve_in_thread

COMMIT = cid_of(DAG_CBOR, SHA256, b"a commit")


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.open(tmp_path / "a.cas", create=True, author="A <a@b.c>") as made:
        for number in range(3):
            session = made.session()
            session.mapping.set_value("x", bytes([number]))
            session.commit(f"commit {number}")
            session.close()
        made.create_tag("v1", "main~1")
        made.create_branch("trial/one", "main~2")
        yield made


@pytest.fixture
def lying() -> Iterator[Callable[..., str]]:
    """Give a function that starts a server which answers everything with these bytes."""
    servers: list[ThreadingHTTPServer] = []

    def start(body: bytes, status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_closing_a_repository_closes_its_connections(repo: Repository) -> None:
    with serve_in_thread(repo) as server:
        with Repository.open(server.url) as far:
            assert far.resolve("main~1").root == repo.resolve("main~1").root
            assert isinstance(far.refs, WebRefs)
            idle = far.refs._client._idle
            assert any(idle.values())
        assert not any(idle.values())


def test_refs_are_those_of_the_repository(repo: Repository) -> None:
    with serve_in_thread(repo) as server:
        refs, blocks, function = open_web(server.url)
        with blocks:
            assert refs.read_only
            assert function is repo.function
            assert refs.branches() == repo.refs.branches() == ["main", "trial/one"]
            assert refs.tags() == ["v1"]
            for name in refs.branches():
                assert refs.branch(name) == repo.refs.branch(name)
            assert refs.tag("v1") == repo.refs.tag("v1")
            assert refs.branch("none") is None
            assert refs.remotes() == refs.all_kept() == refs.all_tracked() == refs.log() == []
            for version in ("main", "v1", "main~2", "trial/one"):
                assert resolve(blocks, refs, version) == repo.resolve(version)
            with pytest.raises(VersionNotFoundError, match="did you mean"):
                resolve(blocks, refs, "mian")
            root = resolve(blocks, refs, "v1").root
            assert CASMapping(blocks, root, read_only=True)["x"] == b"\x01"


def test_moves_are_seen(repo: Repository) -> None:
    with serve_in_thread(repo) as server, HttpClient() as client:
        refs = WebRefs(server.url, client, max_age=0)
        before = refs.branch("main")
        session = repo.session()
        session.mapping.set_value("x", b"new")
        session.commit("fourth")
        session.close()
        assert refs.branch("main") != before
        assert refs.branch("main") == repo.refs.branch("main")
        repo.delete_tag("v1")
        assert refs.tags() == []


def test_a_cut_history_is_told(repo: Repository, tmp_path: Path) -> None:
    copy = Repository.clone(repo, tmp_path / "b.cas", depth=1)
    assert copy.refs.shallow()
    with copy, serve_in_thread(copy) as server:
        refs, blocks, _ = open_web(server.url)
        with blocks:
            assert refs.shallow() == copy.refs.shallow()
            tip = refs.branch("main")
            assert tip is not None
            assert tip.commit is not None
            assert Commits(blocks, refs).parents(tip.commit) == ()
            assert isinstance(Commits(blocks, refs).read(tip.commit), Commit)


def test_nothing_can_be_moved(repo: Repository) -> None:
    with serve_in_thread(repo) as server, HttpClient() as client:
        refs = WebRefs(server.url, client)
        now = refs.branch("main")
        with pytest.raises(ReadOnlyError, match="reading only"):
            refs.update("main", expected=now, new=None)
        with pytest.raises(ReadOnlyError):
            refs.create_tag("v2", Tag(COMMIT))
        with pytest.raises(ReadOnlyError):
            refs.set_shallow(refs.shallow(), frozenset([COMMIT]))
        with pytest.raises(ReadOnlyError):
            refs.swap_gc(None, b"x")
        with pytest.raises(ReadOnlyError):
            refs.mend_log()


GOOD = {
    "type": "cas-zarr/repository",
    "version": 1,
    "hash": "blake3",
    "branches": {"main": {"commit": Link(COMMIT), "work": None}},
    "tags": {"v1": Link(COMMIT)},
    "cut": [],
}


def test_what_a_server_says_can_be_written_by_hand(lying: Callable[..., str]) -> None:
    refs, blocks, function = open_web(lying(dagjson.encode(GOOD)))
    with blocks:
        assert refs.branch("main") == Branch(COMMIT)
        assert function.name == "blake3"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"<html>hello</html>",
        b"[" * 100_000,
        dagjson.encode(GOOD)[:-1],
        dagjson.encode(GOOD) + b" ",
        dagjson.encode({**GOOD, "type": "cas-zarr/branch"}),
        dagjson.encode({**GOOD, "version": 2}),
        dagjson.encode({**GOOD, "version": True}),
        dagjson.encode({**GOOD, "hash": "md5"}),
        dagjson.encode({**GOOD, "hash": 1}),
        dagjson.encode({**GOOD, "hash": "x" * 1000}),
        dagjson.encode({**GOOD, "more": 1}),
        dagjson.encode({name: value for name, value in GOOD.items() if name != "cut"}),
        dagjson.encode({**GOOD, "branches": []}),
        dagjson.encode({**GOOD, "branches": {"main": Link(COMMIT)}}),
        dagjson.encode({**GOOD, "branches": {"main": {"commit": None}}}),
        dagjson.encode({**GOOD, "branches": {"main": {"commit": "x", "work": None}}}),
        dagjson.encode({**GOOD, "branches": {"../main": {"commit": None, "work": None}}}),
        dagjson.encode({**GOOD, "branches": {"main": {"commit": None, "work": Link(COMMIT)}}}),
        dagjson.encode({**GOOD, "tags": {"v1": None}}),
        dagjson.encode({**GOOD, "tags": {"/etc/passwd": Link(COMMIT)}}),
        dagjson.encode({**GOOD, "cut": [None]}),
        dagjson.encode({**GOOD, "cut": {}}),
    ],
)
def test_what_cannot_be_so_is_refused(lying: Callable[..., str], body: bytes) -> None:
    url = lying(body)
    with pytest.raises(RemoteError, match="cannot be read") as caught:
        open_web(url)
    assert url in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_another_server_is_no_repository(lying: Callable[..., str]) -> None:
    with pytest.raises(RepositoryNotFoundError, match="cas-zarr gateway"):
        open_web(lying(b"not found", 404))
    with pytest.raises(RemoteError, match="403"):
        open_web(lying(b"no", 403))


def test_a_body_without_end_is_refused(
    lying: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cas_zarr.repository.webrefs.MAX_BYTES", 1000)
    with pytest.raises(RemoteError):
        open_web(lying(bytes(5000)))


def test_random_bytes_give_an_error_of_ours(lying: Callable[..., str]) -> None:
    random = np.random.default_rng(0)
    good = dagjson.encode(GOOD)
    for _ in range(30):
        body = bytearray(good)
        body[random.integers(len(body))] = random.integers(256)
        if bytes(body) == good:
            continue
        try:
            _, blocks, _ = open_web(lying(bytes(body)))
            blocks.close()
        except CasZarrError:
            pass


def test_the_description_is_canonical(repo: Repository) -> None:
    data, etag = describe_refs(repo.refs, repo.function)
    assert dagjson.encode(dagjson.decode(data)) == data
    assert describe_refs(repo.refs, repo.function) == (data, etag)
    assert REFS_PATH == "/cas-zarr/repository.json"
