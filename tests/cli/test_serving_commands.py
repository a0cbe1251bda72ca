"""The command `gateway`: what it prints, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command


@pytest.fixture
def started(weather: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from cas_zarr.cli.group import run; sys.exit(run(sys.argv[1:]))",
            *("gateway", str(weather), "--port", "0", "--json", "--log"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield child
    child.kill()
    child.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(started: subprocess.Popen[str], number: signal.Signals) -> None:
    assert started.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):
        line = started.stdout.readline()
        assert line, started.communicate()
        text += line
    url = json.loads(text)["url"]
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{url}/zarr/main/zarr.json", timeout=10) as answer:
        assert json.load(answer)["node_type"] == "group"
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\nUser-Agent: a\xc2\x9b31mb\r\n\r\n")
        assert raw.recv(1 << 16)
    started.send_signal(number)
    _, err = started.communicate(timeout=20)
    assert started.returncode == 0, err
    assert '"GET /zarr/main/zarr.json HTTP/1.1" 200' in err
    assert "\x9b" not in err  # which some terminals obey
    assert "Traceback" not in err


def test_a_repository_has_to_be_there(command: Command, tmp_path: Path) -> None:
    result = command("gateway", tmp_path / "none")
    assert result.code == 1
    assert "there is no repository" in result.err


def test_an_address_that_is_none(command: Command, weather: Path) -> None:
    result = command("gateway", weather, "--host", "203.0.113.1")
    assert result.code == 1
    assert "cannot listen on 203.0.113.1" in result.err
