"""CARs sent to a service that demands a token and knows one call: a proxy before a real node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from running import Kubo
from test_unpublishing import repo  # noqa: F401 (a fixture)

from cas_zarr import Repository
from cas_zarr.blocks.http import HttpClient
from cas_zarr.blocks.kubo import KuboNode
from cas_zarr.errors import BlockNotFoundError, RemoteError
from cas_zarr.repository.uploading import upload_car
from cas_zarr.tree.walk import reachable

TOKEN = "s3cret"


@contextmanager
def import_only(rpc: str) -> Iterator[tuple[str, list[str]]]:
    """Give a service's address, and a list of what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            asked.append(self.path)
            body = b"".join(self._chunks())
            status, data = 200, b""
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                status, data = 403, b"no such token"
            elif not self.path.startswith("/api/v0/dag/import"):
                status, data = 404, b"404 page not found"
            else:
                kind = {"content-type": self.headers["content-type"]}
                with HttpClient() as client:
                    answer = client.request("POST", rpc + self.path, headers=kind, body=body)
                status, data = answer.status, answer.body
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _chunks(self) -> Iterator[bytes]:
            if "chunked" not in self.headers.get("transfer-encoding", ""):
                yield self.rfile.read(int(self.headers.get("content-length", 0)))
                return
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_version_arrives_and_is_pinned(kubo: Kubo, repo: Repository) -> None:  # noqa: F811
    node = KuboNode(kubo.rpc)
    root = repo.resolve("main~1").root
    everything = {cid for _, cid in reachable(repo.blocks, root)}
    with import_only(kubo.rpc) as (url, asked):
        done = upload_car(repo, "main~1", to=url, token=TOKEN)
        assert (done.cid, done.location) == (root, url)
        assert done.blocks == len(everything)
        assert node.is_pinned(root)
        assert len(asked) == 2
        kubo.run("repo", "gc", "-q")
        assert all(node.block_size(cid) for cid in everything)
        newer = upload_car(repo, to=url, token=TOKEN, since="main~1")
        assert node.is_pinned(newer.cid)
        assert newer.blocks == 2  # a chunk, the document with its page inside
        part = upload_car(repo, to=url + "/api/v0", token=TOKEN, path="a", since="main~1")
        assert node.is_pinned(part.cid)
        assert part.cid != newer.cid


def test_a_service_that_lacks_something_says_so(
    kubo: Kubo,
    repo: Repository,  # noqa: F811
) -> None:
    with (
        import_only(kubo.rpc) as (url, _),
        pytest.raises(BlockNotFoundError, match="could not find"),
    ):
        upload_car(repo, to=url, token=TOKEN, since="main~1")  # which was never sent


@pytest.mark.parametrize("token", [None, "wr0ng"])
def test_the_token_is_demanded_and_never_shown(
    kubo: Kubo,
    repo: Repository,  # noqa: F811
    token: str | None,
) -> None:
    with import_only(kubo.rpc) as (url, asked):
        with pytest.raises(RemoteError, match="give the token") as caught:
            upload_car(repo, to=url, token=token)
        assert caught.value.status == 403
        assert "wr0ng" not in str(caught.value)
        assert len(asked) == 1
        assert json.dumps(asked).find("wr0ng") == -1


def test_a_part_that_is_new_is_sent_whole(kubo: Kubo, repo: Repository) -> None:  # noqa: F811
    session = repo.session()
    session.prepare()["new/note"] = b"a part that earlier versions lack"
    session.commit("a new part")
    with import_only(kubo.rpc) as (url, _):
        told: list[tuple[int, int]] = []
        done = upload_car(
            repo,
            to=url,
            token=TOKEN,
            path="new",
            since="main~1",
            progress=lambda *now: told.append(now),
        )
        assert KuboNode(kubo.rpc).is_pinned(done.cid)
        assert told[-1] == (done.blocks, done.size)
