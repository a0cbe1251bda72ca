"""A lease in a bucket: one client at a time, as long as it says from time to time that it is there.

There are no locks in a bucket. An object says who has the lease and since when; who has it renews
it, under the condition that it is still the own one. One that was not renewed for an hour was left
by a client that died, and is taken over.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from cas_zarr.blocks.objects import Objects
from cas_zarr.errors import CasZarrError, ConflictError

__all__ = ["Lease"]

_LASTS: Final = 3600.0  # seconds, by the clocks of the clients
_RENEWED: Final = 60.0
_LIMIT: Final = 4096


class Lease:
    """A lease, held within a ``with``.

    Parameters
    ----------
    objects : Objects
    name : str
        Of the object.
    what : str
        What it is for, in messages.

    Raises
    ------
    ConflictError
        On entering, if another client has it; on `renew`, if another has taken it over.
    """

    def __init__(self, objects: Objects, name: str, what: str) -> None:
        self._objects = objects
        self._name = name
        self._what = what
        self._own = os.urandom(8).hex()
        self._data = b""
        self._renewed = 0.0

    def __enter__(self) -> Self:
        found = self._objects.read(self._name, limit=_LIMIT)
        holder, since = _holder(b"" if found is None else found[0])
        now = time.time()
        if holder and abs(now - since) < _LASTS:
            raise self._taken(f"since {round(now - since)} s")
        if not self._swap(None if found is None else found[1]):
            raise self._taken("since this moment")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(CasZarrError):  # it ends by itself
            found = self._objects.read(self._name, limit=_LIMIT)
            if found is not None and found[0] == self._data:
                self._objects.swap(self._name, found[1], b"")

    def renew(self, *, within: float = _RENEWED) -> None:
        """Say that the holder is there, if it has not done so for some seconds."""
        if abs(time.time() - self._renewed) < within:
            return
        found = self._objects.read(self._name, limit=_LIMIT)
        if found is None or found[0] != self._data or not self._swap(found[1]):
            raise self._taken("and has taken over")

    def _swap(self, token: dict[str, str] | None) -> bool:
        now = time.time()
        data = json.dumps({"holder": self._own, "time": round(now, 6)}).encode()
        if not self._objects.swap(self._name, token, data):
            return False
        self._data, self._renewed = data, now
        return True

    def _taken(self, since: str) -> ConflictError:
        return ConflictError(
            f"another {self._what} is under way in {self._objects.location}, {since}; wait for it, "
            "or for an hour if its client died"
        )


def _holder(data: bytes) -> tuple[str, float]:
    """Return who has a lease, and when it was renewed; the empty string if nobody has it."""
    try:
        value = json.loads(data)
        return str(value["holder"]), float(value["time"])
    except (ValueError, KeyError, TypeError):
        return "", 0.0
