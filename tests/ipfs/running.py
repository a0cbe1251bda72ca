"""A Kubo node, a Node.js and a Chromium that run for the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import programs
from programs import SUPERVISOR

__all__ = ["SUPERVISOR", "Chromium", "Kubo", "NodeJs"]


class Kubo:
    """A node: `rpc` and `gateway` are its URLs, `run` its command line.

    The URLs stay through `stop`, `start` and `restart`.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.rpc = ""
        self.gateway = ""
        self.proc: subprocess.Popen[str] | None = None
        self._environment = {**os.environ, **programs.OFFLINE, "IPFS_PATH": str(folder)}
        self.run("init", "--profile", "test")
        # nothing is asked of servers elsewhere
        self.run("config", "--json", "AutoConf.Enabled", "false")
        self.run("config", "--json", "Version.SwarmCheckEnabled", "false")
        self.run("config", "--json", "Routing.DelegatedRouters", "[]")
        self.run("config", "--json", "Ipns.DelegatedPublishers", "[]")
        self.run("config", "--json", "DNS.Resolvers", "{}")
        self.run("config", "--json", "Bootstrap", "[]")

    def run(self, *arguments: str, input: bytes | None = None) -> str:
        """Run `ipfs` with arguments, and return what it prints; raise where it fails."""
        done = subprocess.run(
            [str(self.program), *arguments],
            input=input,
            capture_output=True,
            env=self._environment,
            timeout=120,
        )
        if done.returncode != 0:
            raise RuntimeError(f"ipfs {' '.join(arguments)}: {done.stderr.decode().strip()}")
        return done.stdout.decode()

    def start(self) -> None:
        """Start the daemon, and return when it answers."""
        assert self.proc is None
        self._keep_addresses()
        for name in ("api", "gateway"):
            (self.folder / name).unlink(missing_ok=True)
        log = self.folder / "daemon.log"
        with log.open("wb") as output:
            self.proc = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, str(self.program), "daemon", "--offline"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=self._environment,
                text=True,
                start_new_session=True,  # an interrupt from the keyboard is for the tests
            )
        deadline = time.monotonic() + 60
        while "Daemon is ready" not in log.read_text(errors="replace"):
            if time.monotonic() > deadline or "Error:" in log.read_text(errors="replace"):
                self.stop()
                raise RuntimeError(f"the node does not start: {log.read_text(errors='replace')}")
            time.sleep(0.05)
        api = (self.folder / "api").read_text().strip()  # /ip4/127.0.0.1/tcp/41213
        self.rpc = f"http://127.0.0.1:{api.rpartition('/')[2]}"
        self.gateway = (self.folder / "gateway").read_text().strip()

    def _keep_addresses(self) -> None:
        """Let a daemon that is started again listen where it did; a node writes its file anew."""
        if self.rpc:
            file = self.folder / "config"
            config = json.loads(file.read_text())
            for name, url in (("API", self.rpc), ("Gateway", self.gateway)):
                config["Addresses"][name] = f"/ip4/127.0.0.1/tcp/{url.rpartition(':')[2]}"
            file.write_text(json.dumps(config))

    def stop(self) -> None:
        """End the daemon, if it runs."""
        if self.proc is not None:
            assert self.proc.stdin is not None
            self.proc.stdin.close()
            try:
                self.proc.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.proc.pid, 9)
                self.proc.wait()
            self.proc = None

    def restart(self) -> None:
        """End the daemon, and start it under the same URLs."""
        self.stop()
        self.start()


class NodeJs:
    """Runs scripts of tests/ipfs/js, beside the packages of npm that they import."""

    def __init__(self, program: Path, packages: Path, folder: Path) -> None:
        self.program = program
        self.folder = folder
        (folder / "node_modules").symlink_to(packages)  # looked for beside the script alone
        for script in (programs.HERE / "js").glob("*.mjs"):
            shutil.copy(script, folder)

    def run(self, script: str, *arguments: str, input: str | bytes | None = None) -> str:
        """Run a script with arguments, and return what it prints; raise where it fails."""
        done = subprocess.run(
            [self.program, "--import", "./loopback.mjs", script, *arguments],
            cwd=self.folder,
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            timeout=120,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{script} {' '.join(arguments)}: {done.stderr.decode().strip()}")
        return done.stdout.decode()

    def json(self, script: str, *arguments: str, input: str | bytes | None = None) -> Any:
        """Run a script, and return the JSON that it prints."""
        return json.loads(self.run(script, *arguments, input=input))


class Chromium:
    """Opens pages without a window, and finds no machine by its name; `log` has what they say."""

    FLAGS = (
        *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    )

    def __init__(self, program: Path, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.log = folder / "chromium.log"

    @contextmanager
    def page(self, url: str) -> Iterator[None]:
        """Show a page while a context lasts."""
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        profile = f"--user-data-dir={self.folder / 'profile'}"
        with self.log.open("wb") as log:
            shown = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, self.program, *self.FLAGS, *root, profile, url],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield
        finally:
            shown.communicate()  # its input ends, and then it does
