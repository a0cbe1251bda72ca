"""Progress is shown on a terminal, and what a command needs is loaded when it needs it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import zarr
from commands import RUN, on_terminal

from cas_zarr import Repository


def test_long_work_shows_how_far_it_is(weather: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone.cas"
    for arguments in (
        ("clone", weather, clone),
        ("gc", clone, "--grace", "0"),
        ("repair", clone, "--from", weather),
    ):
        shown, out = on_terminal(*arguments, stream="stderr")
        assert arguments[0] in shown
        assert b"\x1b" not in out


def test_nothing_optional_is_loaded_before_it_is_used(weather: Path) -> None:
    optional = {"matplotlib", "cryptography", "zarr", "xarray", "dask", "fsspec", "netCDF4"}
    script = (
        "import sys\nfrom cas_zarr.cli.group import run\n"
        f"assert run(['log', {str(weather)!r}]) == 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    assert not set(done.stderr.split()) & optional


def test_a_missing_extra_is_named(weather: Path, tmp_path: Path) -> None:
    """Without matplotlib and cryptography: folders of their names that cannot be imported."""
    hidden = tmp_path / "hidden"
    for name in ("matplotlib", "cryptography"):
        (hidden / name).mkdir(parents=True)
        (hidden / name / "__init__.py").write_text("raise ImportError('it is not here')")
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    for arguments, extra in (
        (("diff", weather, "main", "main", "--plot", tmp_path / "x.png"), "cas_zarr[plot]"),
        (("commit", weather, "-m", "x", "--allow-empty", "--sign", key), "cas_zarr[sign]"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", RUN, *map(str, arguments)],
            capture_output=True,
            check=False,
            text=True,
            env={**os.environ, "PYTHONPATH": str(hidden)},
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert extra in done.stderr


def test_an_interrupt_while_it_loads(weather: Path, tmp_path: Path) -> None:
    (tmp_path / "blake3.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-c", RUN, "log", weather],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_in_a_finalizer_is_not_lost(weather: Path) -> None:
    script = (
        "class Gone:\n"
        "    def __del__(self):\n"
        "        raise KeyboardInterrupt\n"
        "import cas_zarr.cli.group as group\n"
        "def serve(arguments):\n"  # what takes long, and is interrupted in a finalizer
        "    Gone()\n"
        "    return run(arguments)\n"
        "run, group.run = group.run, serve\n" + RUN
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "gateway", weather, "--port", "0"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        # A shell lets what it starts in the background ignore it, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode in (0, 130)
    assert "Traceback" not in done.stderr


def test_an_import_that_meets_a_limit_leaves_nothing(weather: Path, tmp_path: Path) -> None:
    source = tmp_path / "large.zarr"
    zarr.create_array(source, shape=(1 << 20,), dtype="u1", compressors=None, fill_value=1)[:] = 7
    done = subprocess.run(
        [sys.executable, "-c", RUN, "import", source, weather, "--path", "large"],
        capture_output=True,
        check=False,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {weather / 'packs'}: cannot write block bafk")
    assert done.stderr.endswith(
        "file too large; raise the limit of the size of a file (ulimit -f)\n"
    )
    record = Repository.open(weather).record("main")
    assert record is not None
    assert record.work == Repository.open(weather).resolve("main").root
