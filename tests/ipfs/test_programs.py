"""The node and the scripts that the other tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from running import SUPERVISOR


def test_a_node_answers_and_keeps_its_address(kubo: Any) -> None:
    cid = kubo.run("add", "-Q", "--cid-version=1", input=b"hello").strip()
    before = kubo.rpc, kubo.gateway
    kubo.restart()
    assert (kubo.rpc, kubo.gateway) == before
    with urllib.request.urlopen(f"{kubo.gateway}/ipfs/{cid}", timeout=10) as answer:
        assert answer.read() == b"hello"
    with pytest.raises(RuntimeError, match="ipfs block stat"):
        kubo.run("block", "stat", "nonsense")


def test_a_node_ends_with_who_started_it() -> None:
    # the child starts a sleeper in the way a node is started, and is killed
    code = (
        "import subprocess, sys, time\n"
        f"supervisor = {SUPERVISOR!r}\n"
        "subprocess.Popen([sys.executable, '-c', supervisor, 'sleep', '600'],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        sleeper = int(child.stdout.readline())
        os.kill(sleeper, 0)  # it is there
        child.send_signal(signal.SIGKILL)
        child.stdout.read()  # ends when the sleeper and its supervisor are gone
    deadline = time.monotonic() + 10
    while Path(f"/proc/{sleeper}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{sleeper}").exists()


def test_scripts_run_and_stay_on_this_machine(node_js: Any) -> None:
    assert node_js.json("echo.mjs", "a", input="b") == {"arguments": ["a"], "input": "b"}
    with pytest.raises(RuntimeError, match=r"do not connect to 192\.0\.2\.1"):
        node_js.run("echo.mjs", "http://192.0.2.1/")
