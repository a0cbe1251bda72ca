"""Faults: children that die, and system calls that fail, at any change of the disk."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable

import pytest

from cas_zarr.blocks import disk
from cas_zarr.testing.faults import CALLS


@pytest.fixture
def forked() -> Callable[[Callable[[], object]], int]:
    """Return a function that runs another in a child and gives the child's exit status.

    The status is 0, or minus the signal, or 1 after an exception.
    """

    def run(body: Callable[[], object]) -> int:
        with warnings.catch_warnings():
            # The runner of the tests may have a thread; the child uses nothing of it.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            try:
                body()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture
def strike(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that lets the n-th change of the disk come to a blow.

    It returns the list of calls, which grows as they are made.
    """

    def arm(at: int, blow: Callable[[], object]) -> list[str]:
        calls: list[str] = []
        for name in CALLS:
            real = getattr(disk, name)

            def call(
                *args: object, _name: str = name, _real: Callable[..., object] = real
            ) -> object:
                calls.append(_name)
                if len(calls) == at:
                    blow()
                return _real(*args)

            monkeypatch.setattr(disk, name, call)
        return calls

    return arm


@pytest.fixture
def die() -> Callable[[], None]:
    """Return a blow that kills the process at once."""
    return lambda: os.kill(os.getpid(), signal.SIGKILL)
