"""A page of another origin reads arrays through the gateway, in a browser, and draws one."""

from __future__ import annotations

import http.server
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from running import Chromium, NodeJs

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid
from cas_zarr.repository.unixfsview import UnixfsView
from cas_zarr.server.running import serve_in_thread

pytest.importorskip("aiohttp")

AIR = np.random.default_rng(1).normal(280, 10, (3, 20, 30)).astype("f4")
COUNTS = np.arange(70, dtype="i4")
PAGE = (
    b'<!DOCTYPE html><meta charset="utf-8"><canvas></canvas>'
    b'<script type="module" src="page.js"></script>'
)


@contextmanager
def site(script: bytes, task: dict[str, Any]) -> Iterator[tuple[str, queue.Queue[Any]]]:
    """Serve a page; give its address, and what its script finds."""
    found: queue.Queue[Any] = queue.Queue()
    files = {
        "/": ("text/html", PAGE),
        "/page.js": ("text/javascript", script),
        "/task.json": ("application/json", json.dumps(task).encode()),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = files.get(self.path, ("text/plain", b""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", found
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with CASStore(tmp_path / "weather.cas") as store:
        group = zarr.open_group(store, mode="a")
        group.create_array(
            "air",
            data=AIR,
            chunks=(1, 10, 16),
            attributes={"units": "K"},
            compressors=zarr.codecs.GzipCodec(),
        )
        group.create_array("counts", data=COUNTS, chunks=(5,), shards=(35,))
        store.commit("first import")
    with Repository.open(tmp_path / "weather.cas") as repo:
        for cid, made in UnixfsView(repo.blocks, repo.resolve("main").root).blocks():
            if made is not None:
                repo.blocks.put(cid, made)
        repo.blocks.flush()
        yield repo


@pytest.mark.slow
def test_a_page_reads_arrays(
    repo: Repository, node_js: NodeJs, chromium: Chromium, tmp_path: Path
) -> None:
    bundle = tmp_path / "page.js"
    node_js.run("bundle.mjs", "page.mjs", str(bundle))
    root = repo.resolve("main").root
    view = UnixfsView(repo.blocks, root).cid
    chunk = repo.at("main").cid_of("air/c/0/0/0")
    assert chunk is not None
    data = repo.blocks.get(chunk)
    with serve_in_thread(repo) as server:
        places = [f"{server.url}/{way}" for way in ("zarr/main", f"ipfs/{format_cid(root)}")]
        places.append(f"{server.url}/ipfs/{format_cid(view)}")
        task = {
            "arrays": [[place, path] for place in places for path in ("air", "counts")],
            "draw": [places[2], "air", 1],
            "headers": f"{places[2]}/air/c/0/0/0",
        }
        with site(bundle.read_bytes(), task) as (url, answers), chromium.page(url):
            try:
                found = answers.get(timeout=60)
            except queue.Empty:
                pytest.fail(f"the page says nothing: {chromium.log.read_text(errors='replace')}")
    assert "error" not in found, found["error"]

    for air, counts in zip(found["arrays"][::2], found["arrays"][1::2], strict=True):
        assert (air["shape"], air["dtype"]) == (list(AIR.shape), "float32")
        assert air["attributes"] == {"units": "K"}
        assert np.array_equal(np.array(air["values"], "f4"), AIR.ravel())
        assert counts["values"] == COUNTS.tolist()

    step = AIR[1].ravel().astype("f8")
    greys = (step - step.min()) * (255 / (step.max() - step.min()))
    np.testing.assert_allclose(found["drawn"], greys, atol=0.51)

    size = len(data)
    etag = f'"{format_cid(chunk)}"'
    roots = f"{format_cid(view)},{format_cid(chunk)}"
    common = {"accept-ranges": "bytes", "etag": etag, "x-ipfs-roots": roots}
    whole = {**common, "content-length": str(size), "content-range": None}
    part = {**common, "content-length": "4", "content-range": f"bytes 2-5/{size}"}
    rest = {
        **common,
        "content-length": str(size - 2),
        "content-range": f"bytes 2-{size - 1}/{size}",
    }
    seen = found["headers"]
    assert seen["types"] == ["application/vnd.ipld.raw", "application/octet-stream"]
    assert (seen["get"], seen["head"]) == ([200, whole], [200, whole])
    assert (seen["part"], seen["rest"]) == ([206, part], [206, rest])
    assert seen["same"][0] == 304
    assert seen["same"][1]["etag"] == etag
