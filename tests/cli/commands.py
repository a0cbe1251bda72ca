"""What running a command line gives, and what it shows on a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

__all__ = ["RUN", "Command", "Result", "on_terminal"]

RUN = "from cas_zarr.cli.main import main; main()"


class Result(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Result]


def on_terminal(
    *arguments: object, stream: Literal["stdout", "stderr"], columns: int = 100
) -> tuple[str, bytes]:
    """Run a command with a terminal as one of its streams; return what that and the other got."""
    leader, follower = os.openpty()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: follower}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        **streams,
        check=False,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    )
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 100_000):
            shown += part
    except OSError:  # all was read
        pass
    os.close(leader)
    assert done.returncode == 0, shown.decode()
    return shown.decode(), done.stdout or done.stderr or b""
