"""What is left after a process died, the power failed, or the disk was full, at any system call."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of
from cas_zarr.errors import StorageError
from cas_zarr.testing.blocks import sample_blocks
from cas_zarr.testing.faults import DEATHS, EXIT_CODE, DiskFault

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["cas_zarr.blocks.local", "cas_zarr.testing.faults"])


def _old(i: int) -> dict[CidBytes, bytes]:
    return sample_blocks(8, 100 + i, largest=300)


def _new(i: int) -> dict[CidBytes, bytes]:
    large = {cid_of(RAW, BLAKE3, data): data for data in [bytes([i]) * 70_000, bytes([i]) * 90_000]}
    return large | sample_blocks(20, i, largest=900)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three packs, so that the next flush merges."""
    folder = tmp_path_factory.mktemp("template") / "packs"
    with LocalBlocks(folder, create=True) as store:
        for i in range(3):
            store.put_many(_old(i).items())
            store.flush()
        assert store.stats().packs == 3
    return folder


def _write_and_die(folder: str, log: str, at: int, how: str) -> None:
    with DiskFault(at, how):
        store = LocalBlocks(folder)
        for i in range(2):
            store.put_many(_new(i).items())
            store.flush()
            fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.write(fd, b"x")
            os.close(fd)
        store.close()


@pytest.mark.parametrize("how", DEATHS)
def test_what_a_flush_returned_outlives_a_death_at_any_call(
    template: Path, tmp_path: Path, how: str
) -> None:
    at, deaths = 0, 0
    while True:
        at += 1
        folder, log = tmp_path / f"{at}", tmp_path / f"{at}.log"
        shutil.copytree(template, folder)
        child = _context.Process(target=_write_and_die, args=(str(folder), str(log), at, how))
        child.start()
        child.join(60)
        assert child.exitcode in (0, EXIT_CODE)
        flushed = len(log.read_bytes()) if log.exists() else 0
        certain: dict[CidBytes, bytes] = {}
        for i in range(3):
            certain |= _old(i)
        for i in range(flushed):
            certain |= _new(i)
        with LocalBlocks(folder) as store:
            assert not list(folder.glob("*.part"))
            assert store.stats().damaged == ()
            assert all(store.get(cid) == data for cid, data in certain.items())
            listed = list(store.list())
            assert len(listed) == len(set(listed))
            possible = certain | _new(0) | _new(1)
            assert set(certain) <= set(listed) <= set(possible)
            assert all(store.get(cid) == possible[cid] for cid in listed)
            for i in range(2):  # and work goes on
                store.put_many(_new(i).items())
            store.flush()
        with LocalBlocks(folder, read_only=True) as store:
            assert all(store.get(cid) == data for cid, data in possible.items())
        if child.exitcode == 0:
            break
        deaths += 1
        shutil.rmtree(folder)
    assert deaths > 15


def _try(call: Callable[[], None], times: int) -> StorageError | None:
    """Call until it does not fail, like a user who tries again; return the last error."""
    error = None
    for _ in range(times):
        try:
            call()
        except StorageError as caught:
            error = caught
        else:
            return None
    return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("times", [1, 3])
def test_after_a_failed_call_a_later_flush_succeeds(
    template: Path, tmp_path: Path, number: int, times: int
) -> None:
    _fail_at_every_call(template, tmp_path, number, times, drop=False)


@pytest.mark.parametrize("times", [1, 3])
def test_what_a_failed_fsync_dropped_is_never_said_to_be_durable(
    template: Path, tmp_path: Path, times: int
) -> None:
    assert _fail_at_every_call(template, tmp_path, errno.EIO, times, drop=True) > 0


def _fail_at_every_call(
    template: Path, tmp_path: Path, number: int, times: int, *, drop: bool
) -> int:
    """Let each call fail in turn; return how often something was lost, and said to be."""
    losses = at = 0
    while True:
        at += 1
        folder = tmp_path / f"{at}"
        shutil.copytree(template, folder)
        durable: dict[CidBytes, bytes] = {}
        for i in range(3):
            durable |= _old(i)
        store = LocalBlocks(folder)
        with DiskFault(at, number, times=times, drop=drop) as fault:
            for i in range(2):
                put = durable | _new(i)
                for cid, data in _new(i).items():
                    error = _try(partial(store.put, cid, data), times + 1)
                    assert error is None
                error = _try(store.flush, times + 1)
                if error is not None:
                    assert drop
                    assert "was lost" in str(error)
                    losses += 1
                    with pytest.raises(StorageError, match="was lost"):
                        store.flush()  # it says so for good
                    break
                durable = put
                assert all(store.get(cid) == data for cid, data in durable.items())
        assert all(store.get(cid) == data for cid, data in durable.items())
        store.close()
        with LocalBlocks(folder) as again:
            assert again.stats().damaged == ()
            assert all(again.get(cid) == data for cid, data in durable.items())
        shutil.rmtree(folder)
        if not fault.reached:
            break
    assert at > 15
    return losses


def test_puts_of_a_full_disk_can_be_read_and_flushed_later(tmp_path: Path) -> None:
    blocks = sample_blocks(3000, largest=2000)
    store = LocalBlocks(tmp_path / "packs", create=True)
    held = {}
    with DiskFault(3, errno.ENOSPC, times=1 << 30):
        for cid, data in blocks.items():
            error = _try(partial(store.put, cid, data), 1)
            if error is None:
                held[cid] = data
            else:
                assert error.errno == errno.ENOSPC
                assert error.filename == str(tmp_path / "packs")
                assert not store.has(cid)
        with pytest.raises(StorageError, match="free some space"):
            store.flush()
        assert 0 < len(held) < len(blocks)
        assert all(store.get(cid) == data for cid, data in held.items())
    store.flush()
    store.close()
    with LocalBlocks(tmp_path / "packs") as again:
        assert sorted(again.list()) == sorted(held)
        assert all(again.get(cid) == data for cid, data in held.items())


def test_an_error_that_somebody_keeps_is_in_nobody_s_way(
    tmp_path: Path, forked: Callable[[Callable[[], object]], int]
) -> None:
    """A notebook keeps the last error; a disk that is full takes a part of a write before."""

    def body() -> None:
        kept = []
        blocks = sample_blocks(60, largest=60_000) | _new(1)
        store = LocalBlocks(tmp_path / "packs", create=True)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for limit in (1000, 100_000, 200_001):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            for cid, data in blocks.items():
                try:
                    store.put(cid, data)
                except StorageError as error:
                    kept.append(error)
            with pytest.raises(StorageError) as caught:
                store.flush()
            kept.append(caught.value)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.put_many(blocks.items())
        store.flush()
        store.close()
        assert len(kept) > 3
        with LocalBlocks(tmp_path / "packs", read_only=True) as again:
            assert sorted(again.list()) == sorted(blocks)
            assert all(again.get(cid) == data for cid, data in blocks.items())

    assert forked(body) == 0
