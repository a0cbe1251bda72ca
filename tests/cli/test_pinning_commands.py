"""`pin`, `resolve`, `unpublish`, `upload`; those that need a node are in tests/ipfs as well."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from commands import Command
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from servers.pinning import TOKEN, Pinning, serve_pinning

from cas_zarr import Repository
from cas_zarr.cid import format_cid
from cas_zarr.codecs.ipns import IpnsRecord, encode_record, name_of

KEY = Ed25519PrivateKey.generate()
NAME = str(name_of(KEY.public_key().public_bytes_raw()))
PATH = "/ipfs/bafkreiey5jxe6ilpf62lnh77tm5ejbbmhbugzjuf6p2v3remlu73ced34q"


@pytest.fixture
def service() -> Iterator[Pinning]:
    with serve_pinning() as found:
        yield found


@pytest.fixture
def gateway() -> Iterator[str]:
    """A gateway that has one record."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            record = IpnsRecord(PATH, time.time_ns() + 3600 * 10**9, 5)
            data = encode_record(record, KEY)
            self.send_response(200)
            self.send_header("content-type", "application/vnd.ipfs.ipns-record")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_pin(
    weather: Path,
    service: Pinning,
    tmp_path: Path,
    command: Command,
    done: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CAS_ZARR_PINNING_TOKEN", raising=False)
    with Repository.open(weather) as repo:
        cid = format_cid(repo.resolve("main").root)
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    options = ("--service", service.url, "--token-file", token)
    made = done("pin", weather, "main", *options, "--name", "w", "--wait", 10, "--json").json
    assert (made["cid"], made["state"], made["name"]) == (cid, "pinned", "w")
    assert made["id"] in service.pins
    monkeypatch.setenv("CAS_ZARR_PINNING_TOKEN", TOKEN)
    text = done("pin", weather, "--service", service.url, "--origin", "/ip4/127.0.0.1/tcp/1").out
    assert cid in text
    assert "queued" in text
    assert [one["pin"].get("origins") for one in service.pins.values()] == [
        None,
        ["/ip4/127.0.0.1/tcp/1"],
    ]
    monkeypatch.setenv("CAS_ZARR_PINNING_TOKEN", "wr0ng")
    refused = command("pin", weather, "--service", service.url)
    assert refused.code == 1
    assert "give one that the service knows" in refused.err
    assert "wr0ng" not in refused.err
    monkeypatch.delenv("CAS_ZARR_PINNING_TOKEN")
    assert "CAS_ZARR_PINNING_TOKEN" in command("pin", weather, "--service", service.url).err


def test_resolve(gateway: str, command: Command, done: Command) -> None:
    found = done("resolve", NAME, "--gateway", gateway, "--json").json
    assert (found["path"], found["verified"], found["source"]) == (PATH, True, gateway)
    assert found["sequence"] == 5
    text = done("resolve", f"ipns://{NAME}/sub", "--gateway", gateway).out
    assert f"{PATH}/sub" in text
    assert "expires" in text
    failed = command("resolve", NAME, "--node", "http://127.0.0.1:1")
    assert failed.code == 1
    assert "was not resolved" in failed.err
    assert command("resolve", "nonsense", "--gateway", gateway).code == 1


def test_what_to_take_back_must_be_said(weather: Path, command: Command) -> None:
    for options in ((), ("--version", "main", "--expired")):
        told = command("unpublish", weather, *options)
        assert told.code == 2
        assert "--expired" in told.err


def test_nothing_was_published(weather: Path, command: Command, done: Command) -> None:
    nowhere = ("--to", "http://127.0.0.1:1")
    assert "0 publications" in done("unpublish", weather, "--expired", *nowhere).out
    told = command("unpublish", weather, "--version", "main", *nowhere)
    assert told.code == 1
    assert "known to have been published" in told.err


def test_an_upload_that_is_refused(
    weather: Path, service: Pinning, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAS_ZARR_IPFS_TOKEN", "wr0ng")
    told = command("upload", weather, "--to", service.url)
    assert told.code == 1
    assert "give the token" in told.err
    assert "wr0ng" not in told.err
    assert service.asked[0].startswith("POST /api/api/v0/dag/import")
