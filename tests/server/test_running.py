"""Limits of the server, clients that are slow, and a repository that changes while it is served."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import zarr
from served import Answer, Served, broken_parent, make

from cas_zarr import CASStore, Repository
from cas_zarr.errors import InvalidArgumentError, StorageError
from cas_zarr.server.app import Limits
from cas_zarr.server.running import serve_in_thread


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    repo, _ = make(tmp_path / "weather.cas")
    repo.close()
    return tmp_path / "weather.cas"


def get(url: str, path: str) -> Answer:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", path)
        found = connection.getresponse()
        return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
    finally:
        connection.close()


def dial(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1 << 16) == b""
    except ConnectionError:
        return True


def test_a_head_that_never_ends_is_cut_off(folder: Path) -> None:
    limits = Limits(idle=0.5)
    with Repository.open(folder) as repo, serve_in_thread(repo, limits=limits) as server:
        with dial(server.url) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            for _ in range(4):
                time.sleep(0.1)
                slow.sendall(b"X: y\r\n")
            assert ended(slow)
        assert get(server.url, "/").status == 200


def test_a_connection_is_kept_while_it_is_used(folder: Path) -> None:
    limits = Limits(idle=0.5)
    with Repository.open(folder) as repo, serve_in_thread(repo, limits=limits) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
        for _ in range(4):
            connection.request("GET", "/zarr/main/zarr.json")
            assert connection.getresponse().read()
            time.sleep(0.3)
        connection.close()


def test_a_client_that_takes_nothing_is_cut_off(folder: Path) -> None:
    limits = Limits(patience=0.5, requests=1, queue=10.0)
    with Repository.open(folder) as repo:
        cid = broken_parent(repo)
        with serve_in_thread(repo, limits=limits) as server, dial(server.url) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            slow.sendall(f"GET /ipfs/{cid}?format=car HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(0.2)
            began = time.monotonic()
            assert get(server.url, "/").status == 200  # once the slow one has lost its place
            assert time.monotonic() - began < 9


def test_a_server_that_ends_cuts_off_who_takes_nothing(folder: Path) -> None:
    with Repository.open(folder) as repo:
        cid = broken_parent(repo)
        with serve_in_thread(repo) as server:
            slow = dial(server.url)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            slow.sendall(f"GET /ipfs/{cid}?format=car HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(0.3)
        with slow, pytest.raises(ConnectionResetError):
            b"".join(iter(lambda: slow.recv(1 << 20), b""))


def test_more_requests_than_places_are_told_to_come_again(folder: Path) -> None:
    limits = Limits(patience=20, requests=1, queue=0.2)
    with Repository.open(folder) as repo:
        cid = broken_parent(repo)
        with serve_in_thread(repo, limits=limits) as server, dial(server.url) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            slow.sendall(f"GET /ipfs/{cid}?format=car HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(0.3)
            busy = get(server.url, "/")
            assert (busy.status, busy.headers["retry-after"]) == (503, "1")


def test_more_connections_than_allowed_are_closed(folder: Path) -> None:
    limits = Limits(connections=2)
    with Repository.open(folder) as repo, serve_in_thread(repo, limits=limits) as server:
        with dial(server.url), dial(server.url):
            time.sleep(0.1)
            with dial(server.url) as third:
                assert ended(third)
        time.sleep(0.1)
        assert get(server.url, "/").status == 200


def test_what_is_written_meanwhile_is_served(folder: Path) -> None:
    with Repository.open(folder, read_only=True) as repo, serve_in_thread(repo) as server:
        before = get(server.url, "/zarr/main/t2m/c/0/0")
        with CASStore(folder) as store:
            zarr.open_array(store, path="t2m", mode="r+")[0, 0] = 99
            store.commit("third")
        after = get(server.url, "/zarr/main/t2m/c/0/0")
        assert (before.status, after.status) == (200, 200)
        assert before.headers["etag"] != after.headers["etag"]
        assert before.body != after.body


def test_what_was_collected_is_gone(folder: Path) -> None:
    with Repository.open(folder, read_only=True) as repo, serve_in_thread(repo) as server:
        old = get(server.url, "/zarr/v1/t2m/c/0/0").headers["etag"].strip('"')
        assert get(server.url, f"/ipfs/{old}?format=raw").status == 200
        with Repository.open(folder) as writer:
            writer.delete_tag("v1")
            writer.expire(keep=1)
            writer.gc(grace=timedelta(0), log_age=timedelta(0), max_unused=0)
            writer.gc(grace=timedelta(0), log_age=timedelta(0), max_unused=0)
        assert get(server.url, "/zarr/v1/t2m/c/0/0").status == 410
        # whoever has a pack open can read it to its end; nobody who comes later finds it
        assert get(server.url, f"/ipfs/{old}?format=raw").status in (200, 404)
        assert get(server.url, "/zarr/main/t2m/c/0/0").status == 200
    with Repository.open(folder, read_only=True) as repo, serve_in_thread(repo) as server:
        assert get(server.url, f"/ipfs/{old}?format=raw").status == 404
        assert get(server.url, "/zarr/main/t2m/c/0/0").status == 200


def test_damage_is_told_and_not_served(served: Served, tmp_path: Path) -> None:
    repo, found = make(tmp_path / "damaged.cas")
    repo.close()
    for pack in (tmp_path / "damaged.cas" / "packs").rglob("*.car"):
        data = bytearray(pack.read_bytes())
        good = served.repo.blocks.get(found["chunk"])
        at = data.find(good)
        if at >= 0:
            data[at + len(good) - 1] ^= 1
            pack.chmod(0o644)
            pack.write_bytes(data)
    with Repository.open(tmp_path / "damaged.cas") as repo, serve_in_thread(repo) as server:
        assert get(server.url, f"/ipfs/{found['root']}/t2m/c/0/0").status == 500
        assert get(server.url, f"/ipfs/{found['root']}/t2m/c/1/1").status == 200


def test_many_clients_at_once(served: Served) -> None:
    whole = served.get("/zarr/main/large/c/0/0").body
    bad: list[int] = []

    def read() -> None:
        for _ in range(5):
            found = served.get("/zarr/main/large/c/0/0")
            if found.body != whole:
                bad.append(found.status)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not bad


def test_a_port_that_is_taken(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    with (
        pytest.raises(StorageError, match="choose another address or port"),
        serve_in_thread(served.repo, port=port),
    ):
        pass


@pytest.mark.parametrize("host", ["a" * 70, "é" * 80, "x\0y", "not a name"])
def test_an_address_that_is_none(served: Served, host: str) -> None:
    with (
        pytest.raises(StorageError, match="choose another"),
        serve_in_thread(served.repo, host=host),
    ):
        pass


def test_no_address_is_not_every_address(served: Served) -> None:
    with (
        pytest.raises(InvalidArgumentError, match="address"),
        serve_in_thread(served.repo, host=""),
    ):
        pass


@pytest.mark.slow
def test_a_slow_client_gets_a_large_document(tmp_path: Path) -> None:
    with CASStore(tmp_path / "large.cas") as store:
        zarr.open_group(store, mode="a").attrs["x"] = "y" * (24 << 20)
        store.commit("first")
    limits = Limits(patience=0.5)
    with (
        Repository.open(tmp_path / "large.cas") as repo,
        serve_in_thread(repo, limits=limits) as server,
        socket.socket() as slow,
    ):
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.settimeout(20)
        slow.connect((host, int(port)))
        slow.sendall(b"GET /zarr/main/zarr.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        taken = 0
        while data := slow.recv(1 << 18):
            taken += len(data)
            time.sleep(len(data) / (10 << 20))  # ten mebibytes a second
    assert taken > 24 << 20


def test_limits_make_sense() -> None:
    with pytest.raises(InvalidArgumentError, match="requests"):
        Limits(requests=0)
