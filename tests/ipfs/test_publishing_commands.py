"""`publish` on the command line: what it prints is at the node, and it says what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import zarr
from running import Kubo

from cas_zarr import CASStore, Repository
from cas_zarr.blocks.kubo import KuboNode
from cas_zarr.cid import format_cid
from cas_zarr.cli.group import run

SECRET = "s3cret-of-the-rpc"


@pytest.fixture(autouse=True)
def _no_token_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAS_ZARR_IPFS_TOKEN", raising=False)


@pytest.fixture
def weather(tmp_path: Path) -> Path:
    """Return a repository with two commits of t2m, and a group beside it."""
    folder = tmp_path / "weather.cas"
    # the folder's name goes into the data, so that no test finds the blocks of another
    seed = sum(map(ord, tmp_path.name))
    with CASStore(folder) as store:
        group = zarr.open_group(store, mode="a")
        values = np.random.default_rng(seed).random((4, 6))
        group.create_array("t2m", data=values, chunks=(2, 3))
        group.create_array("land/mask", data=np.arange(seed, seed + 8), chunks=(4,))
        store.commit("first", author="A <a@b.c>")
        zarr.open_array(store, path="t2m", mode="r+")[0, 0] = 7.0
        store.commit("second", author="A <a@b.c>")
    return folder


Publish = Callable[..., tuple[int, str, str]]


@pytest.fixture
def publish(weather: Path, capsys: pytest.CaptureFixture[str]) -> Publish:
    """Return a function that runs `publish` on the repository: exit code, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        code = run(["publish", str(weather), *map(str, words)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def guarded() -> Iterator[tuple[str, list[str | None]]]:
    """Give a server that refuses everything, and the authorizations that it was shown."""
    shown: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            shown.append(self.headers.get("authorization"))
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", shown
    server.shutdown()
    thread.join()
    server.server_close()


def root_of(weather: Path, version: str = "main") -> str:
    with Repository.open(weather) as repo:
        return format_cid(repo.resolve(version).root)


def pinned(kubo: Kubo, cid: str) -> bool:
    return f"{cid} recursive" in kubo.run("pin", "ls", "--type=recursive")


def test_what_is_printed_is_pinned(kubo: Kubo, weather: Path, publish: Publish) -> None:
    code, out, _ = publish("--to", kubo.rpc)
    root = root_of(weather)
    assert code == 0
    assert f"ipfs://{root}" in out
    assert f"/ipfs/{root}" in out
    assert "ipns" not in out
    assert pinned(kubo, root)


def test_a_second_publication_sends_nothing(kubo: Kubo, weather: Path, publish: Publish) -> None:
    code, out, _ = publish("main", "--to", kubo.rpc, "--json")
    first = json.loads(out)
    assert code == 0
    assert first["cid"] == first["root"] == root_of(weather)
    assert first["url"] == f"ipfs://{first['cid']}"
    assert (first["view"], first["pinned"], first["ipns"]) == ("root", True, None)
    assert first["node"] == kubo.rpc
    assert first["blocks"] > 0
    assert first["bytes"] > 0
    again = json.loads(publish("main", "--to", kubo.rpc, "--json")[1])
    assert (again["cid"], again["blocks"], again["bytes"]) == (first["cid"], 0, 0)
    assert again["requests"] <= 3


def test_a_name_is_that_of_the_pin_and_leads_there(kubo: Kubo, publish: Publish) -> None:
    told = json.loads(publish("--to", kubo.rpc, "--name", "of-commands", "--json")[1])
    node = KuboNode(kubo.rpc)
    assert told["ipns"] == node.keys()["of-commands"]
    assert node.name_resolve(told["ipns"]) == f"/ipfs/{told['cid']}"
    assert "of-commands" in {pin.name for pin in node.pins() if format_cid(pin.cid) == told["cid"]}
    assert f"ipns://{told['ipns']}" in publish("--to", kubo.rpc, "--name", "of-commands")[1]


def test_a_history_is_the_commit_with_the_roots_before_it(
    kubo: Kubo, weather: Path, publish: Publish
) -> None:
    told = json.loads(publish("--to", kubo.rpc, "--history", "--json")[1])
    with Repository.open(weather) as repo:
        assert told["cid"] == format_cid(repo.resolve("main").commit)
        older = [format_cid(entry.commit.root) for entry in repo.log()]
    assert len(set(older)) == 2
    assert pinned(kubo, told["cid"])
    refs = kubo.run("refs", "--recursive", "--offline", told["cid"]).split()
    assert set(older) <= set(refs)


def test_a_path_goes_alone(kubo: Kubo, weather: Path, publish: Publish) -> None:
    whole = root_of(weather)
    told = json.loads(publish("--to", kubo.rpc, "--path", "land/mask", "--json")[1])
    assert told["cid"] != whole
    assert pinned(kubo, told["cid"])
    assert not pinned(kubo, whole)
    array = zarr.open_array(CASStore(f"ipfs://{told['cid']}", gateways=kubo.gateway), mode="r")
    assert array.shape == (8,)


def test_a_view_is_a_directory_of_files(kubo: Kubo, weather: Path, publish: Publish) -> None:
    told = json.loads(publish("--to", kubo.rpc, "--view", "unixfs", "--json")[1])
    assert told["view"] == "unixfs"
    assert told["root"] == root_of(weather) != told["cid"]
    assert pinned(kubo, told["cid"])
    assert pinned(kubo, told["root"])
    assert json.loads(kubo.run("cat", f"{told['cid']}/t2m/zarr.json"))["shape"] == [4, 6]
    out = publish("--to", kubo.rpc, "--view", "unixfs")[1]
    assert told["root"] in out
    assert told["cid"] in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--history", "--path", "t2m"), "whole datasets"),
        (("--history", "--view", "unixfs"), "whole datasets"),
        (("--path", "nowhere"), "nowhere"),
        (("no-such-version",), "no-such-version"),
    ],
)
def test_what_cannot_be_published_is_said(
    kubo: Kubo, publish: Publish, words: tuple[str, ...], said: str
) -> None:
    code, out, err = publish(*words, "--to", kubo.rpc)
    assert (code, out) == (1, "")
    assert said in err


def test_a_gateway_is_not_taken_for_a_node(kubo: Kubo, publish: Publish) -> None:
    code, _, err = publish("--to", kubo.gateway)
    assert code == 1
    assert "this is a gateway" in err
    assert "5001" in err


def test_a_node_that_does_not_run_is_named(publish: Publish) -> None:
    code, _, err = publish("--to", "http://127.0.0.1:1")
    assert code == 1
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_token_is_sent_and_never_shown(
    way: str,
    guarded: tuple[str, list[str | None]],
    tmp_path: Path,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, shown = guarded
    words: tuple[object, ...] = ()
    if way == "file":
        (tmp_path / "token").write_text(f"{SECRET}\n")
        words = ("--token-file", tmp_path / "token")
        monkeypatch.setenv("CAS_ZARR_IPFS_TOKEN", "of-the-environment")
    else:
        monkeypatch.setenv("CAS_ZARR_IPFS_TOKEN", f" {SECRET}\n")
    code, out, err = publish("--to", url, *words)
    assert code == 1
    assert set(shown) == {f"Bearer {SECRET}"}
    assert "give the token" in err
    assert SECRET not in out + err


@pytest.mark.parametrize("held", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_token_file_without_a_token_asks_nobody(
    held: bytes | None,
    guarded: tuple[str, list[str | None]],
    tmp_path: Path,
    publish: Publish,
) -> None:
    url, shown = guarded
    file = tmp_path / "token"
    if held is not None:
        file.write_bytes(held)
    code, _, err = publish("--to", url, "--token-file", file)
    assert code == 1
    assert str(file) in err
    assert shown == []
