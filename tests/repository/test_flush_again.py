"""A flush or a commit fails, or is interrupted, behind any change of the disk; and the next one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cas_zarr.blocks import disk
from cas_zarr.errors import StorageError
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.session import Session
from cas_zarr.testing.faults import CALLS

KEY = "note"


def _commit(session: Session) -> object:
    return session.commit("a")


ACTIONS: dict[str, Callable[[Session], object]] = {"flush": Session.flush, "commit": _commit}

FAILURES: dict[str, BaseException] = {
    "failure": OSError(errno.EIO, os.strerror(errno.EIO)),
    "interrupt": KeyboardInterrupt(),
}


def _fail_behind(patch: pytest.MonkeyPatch, at: int, error: BaseException) -> Callable[[], bool]:
    """Let the `at`-th change of the disk be made, and raise; return what tells if it came."""
    count = 0

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(disk, name)

        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            result = real(*arguments)
            if count == at:
                raise error
            return result

        return call

    for name in CALLS:
        if name != "create":  # its descriptor would be lost
            patch.setattr(disk, name, counted(name))
    return lambda: count >= at


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("action", ACTIONS)
def test_a_session_is_in_no_conflict_with_itself(tmp_path: Path, action: str, failure: str) -> None:
    at, reached = 0, True
    while reached:
        at += 1
        repo = Repository.open(tmp_path / str(at), create=True)
        session = repo.session()
        session.prepare().set_value(KEY, b"first")
        session.commit("begin")
        session.mapping.set_value(KEY, b"second")
        with pytest.MonkeyPatch.context() as patch:
            has_come = _fail_behind(patch, at, FAILURES[failure])
            with suppress(StorageError, KeyboardInterrupt):
                ACTIONS[action](session)
            reached = has_come()
        session.mapping.set_value(KEY, b"third")
        ACTIONS[action](session)
        repo.close()
        with Repository.open(tmp_path / str(at)) as again:
            assert again.session().mapping[KEY] == b"third"
            assert again.refs.all_kept() == []
            assert again.verify(data=True).ok
    assert at > 5
