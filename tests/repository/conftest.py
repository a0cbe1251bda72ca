"""Faults: system calls that fail, at any change of the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from cas_zarr.blocks import disk
from cas_zarr.testing.faults import CALLS


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
