"""An interrupt before any line of a put or a flush: what follows is as if it had not begun."""

from __future__ import annotations

import linecache
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import pytest

from cas_zarr import blocks as package
from cas_zarr.blocks import writer
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.blocks.packcheck import check_pack, pack_paths
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of

FOLDER = os.path.dirname(os.path.abspath(package.__file__)) + os.sep


class Interrupt:
    """While this is entered, KeyboardInterrupt comes before the `at`-th line of a block store."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __enter__(self) -> Self:
        sys.settrace(self._trace)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        sys.settrace(None)
        return kind is KeyboardInterrupt

    def _trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(FOLDER) or frame.f_code.co_name == "__del__":
            return None
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        # No real interrupt comes between the last line of a `with` and its end.
        if event == "line" and not source.lstrip().startswith("with "):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


def _blocks(seed: int) -> dict[CidBytes, bytes]:
    values = [bytes([seed + i]) * size for i, size in enumerate((5, 200, 70_000, 300, 80_000, 9))]
    return {cid_of(RAW, BLAKE3, value): value for value in values}


def _interrupted(folder: Path, at: int) -> bool:
    """Put and flush with an interrupt, go on, and check all; tell if the interrupt came."""
    store = LocalBlocks(folder, create=True)
    first, second = _blocks(10), _blocks(50)
    done: dict[CidBytes, bytes] = {}
    with Interrupt(at) as interrupt:
        for cid, data in first.items():
            store.put(cid, data)
            done[cid] = data
        store.flush()
    assert all(store.get(cid) == data for cid, data in done.items())
    with LocalBlocks(folder, read_only=True) as other:  # what has a name is whole from then on
        seen = {cid for cid in other.list() if other.get(cid)}
    for cid, data in (first | second).items():  # again, as whoever repeats what was interrupted
        store.put(cid, data)
    for path in pack_paths(str(folder)):
        assert check_pack(path).faults == ()
    store.flush()
    assert all(store.get(cid) == data for cid, data in (first | second).items())
    store.close()
    for path in pack_paths(str(folder)):
        assert check_pack(path).faults == ()
    with LocalBlocks(folder, read_only=True) as again:
        assert sorted(again.list()) == sorted(first | second)
        assert all(again.get(cid) == data for cid, data in (first | second).items())
    assert seen <= first.keys()
    return interrupt.left <= 0


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder in memory where there is one: hundreds of flushes sync nothing there."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="interrupts", dir=memory)
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("run_length", [3, 1000])
def test_work_goes_on_after_an_interrupt(
    place: Path, monkeypatch: pytest.MonkeyPatch, run_length: int
) -> None:
    monkeypatch.setattr(writer, "_SLAB_SIZE", 150)
    monkeypatch.setattr(writer, "_RUN_LENGTH", run_length)
    at = 1
    while _interrupted(place / str(at), at):
        shutil.rmtree(place / str(at))
        at += 1
    assert at > 200


def test_a_pack_that_has_its_name_outlives_its_writer(place: Path) -> None:
    """Others may have come to rely on it before the writer was closed without a flush."""
    at = 1
    named = 0
    while True:
        folder = place / str(at)
        store = LocalBlocks(folder, create=True)
        with Interrupt(at) as interrupt:
            store.put_many(_blocks(10).items())
            store.flush()
        there = pack_paths(str(folder))
        store.close()
        assert pack_paths(str(folder)) == there
        named += bool(there)
        if interrupt.left > 0:
            break
        at += 1
    assert named > 1
