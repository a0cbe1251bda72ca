"""Servers of S3 that run for the tests: ``from objects.servers import S3Server``.

Both honour ``If-None-Match: *`` and ``If-Match``: moto, which comes with pip and takes any
credentials, and versitygw, which is faster and checks them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from ipfs.programs import SUPERVISOR
from obstore.store import S3Store

__all__ = ["BUCKET", "KEY", "SECRET", "Moto", "S3Server", "VersityGw"]

BUCKET = "bucket"
KEY = "AKIAOFTHETESTS"
SECRET = "the-secret-of-the-tests"

_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # ends when whoever started this closes it, or is gone
"""


class S3Server:
    """A server with one bucket; `url` is its endpoint, and stays through `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.proc: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        """Return what to run; it ends with the standard input of what is run."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server, and return when it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server, if it runs."""
        if self.proc is not None:
            os.killpg(self.proc.pid, signal.SIGKILL)  # it would wait for connections to end
            self.proc.wait()
            assert self.proc.stdin is not None
            self.proc.stdin.close()
            if self.proc.stdout is not None:
                self.proc.stdout.close()
            self.proc = None

    def options(self, **changes: Any) -> dict[str, Any]:
        """Return the options of obstore for this server; None takes one away."""
        options = {
            "endpoint": self.url,
            "region": "us-east-1",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            **changes,
        }
        return {name: value for name, value in options.items() if value is not None}

    def store(self, bucket: str = BUCKET, **changes: Any) -> S3Store:
        """Return a store of obstore for a bucket of this server."""
        return S3Store(bucket, client_options={"allow_http": True}, **self.options(**changes))

    def _run(self, command: list[str], **variables: str) -> None:
        assert self.proc is None
        with (self.folder / "server.log").open("ab") as log:
            self.proc = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **variables},
                text=True,
                start_new_session=True,  # an interrupt from the keyboard is for the tests
            )

    def _log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-2000:]


class Moto(S3Server):
    """The server of moto: all in memory, with any credentials."""

    def start(self) -> None:
        self._run([sys.executable, "-W", "ignore", "-c", _MOTO])
        assert self.proc is not None
        assert self.proc.stdout is not None
        lines = iter(self.proc.stdout)
        port = next((line.split()[1] for line in lines if line.startswith("port ")), None)
        if port is None:
            raise RuntimeError(f"moto does not start: {self._log()}")
        self.url = f"http://127.0.0.1:{port}"
        make = urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(make, timeout=60) as answer:
            assert answer.status == 200


class VersityGw(S3Server):
    """versitygw over a folder: a bucket is a folder there, an object a file."""

    def __init__(self, program: Path, folder: Path) -> None:
        super().__init__(folder)
        self.program = program
        (folder / "data" / BUCKET).mkdir(parents=True)

    def start(self) -> None:
        for attempt in range(5):  # another program may take the port that was free
            address = self.url.rpartition("/")[2] or f"127.0.0.1:{_free_port()}"
            self._run(
                [
                    *(sys.executable, "-c", SUPERVISOR, str(self.program)),
                    *("--quiet", "--keep-alive", "--port", address),
                    *("posix", str(self.folder / "data")),
                ],
                ROOT_ACCESS_KEY=KEY,
                ROOT_SECRET_KEY=SECRET,
            )
            if self._answers(f"http://{address}"):
                self.url = f"http://{address}"
                return
            self.stop()
            time.sleep(0.2 * attempt)
        raise RuntimeError(f"versitygw does not start: {self._log()}")

    def _answers(self, url: str) -> bool:
        """Wait until the server asks for credentials; False if something else listens there."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{url}/{BUCKET}", timeout=5).close()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code == 403
            except OSError:
                if "address already in use" in self._log():
                    return False
                time.sleep(0.05)
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
