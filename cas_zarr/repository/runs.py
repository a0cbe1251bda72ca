"""Runs: chunks of one grid that are asked for one after the other, and which should come next.

Zarr reads a selection in C order, so the first chunks of it tell where it goes on: along the last
axis until that wraps, from then on in rows of that length, and so for each axis before.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["Coordinates", "Run"]

Coordinates: TypeAlias = "tuple[int, ...]"


class Run:
    """Coordinates that come in C order of a box whose far sides are not known yet.

    Parameters
    ----------
    first : tuple of int

    Attributes
    ----------
    first : tuple of int
        Where it begins.
    count : int
        How many came.
    planned : int
        How many of those that `plan` gave did not come yet.
    ended : bool
        Whether nothing was left to plan.
    """

    __slots__ = ("_end", "_last", "_stops", "_upper", "count", "ended", "first", "planned")

    def __init__(self, first: Coordinates) -> None:
        self.first = self._last = self._end = first
        self._upper: list[int | None] = [None] * len(first)
        self._stops: list[int | None] = list(self._upper)  # as the last plan had them
        self.count = 1
        self.planned = 0
        self.ended = False

    def goes_on(self, here: Coordinates) -> bool:
        """Tell whether coordinates are the next of this run; if so, they are its last now."""
        last = self._last
        if len(here) != len(last):
            return False
        axis = next((row for row, place in enumerate(last) if place != here[row]), None)
        if axis is None or here[axis] != last[axis] + 1 or here[axis] == self._upper[axis]:
            return False
        wrapped = range(axis + 1, len(last))  # axes that begin anew
        if any(
            here[row] != self.first[row] or self._upper[row] not in (None, last[row] + 1)
            for row in wrapped
        ):
            return False
        for row in wrapped:
            self._upper[row] = last[row] + 1
        self._last = here
        self.count += 1
        if self.planned and all(self._stops[row] == self._upper[row] for row in wrapped):
            self.planned -= 1
        else:  # what was planned lies outside the box
            self._end, self.planned, self.ended = here, 0, False
        return True

    def plan(self, number: int, grid: Coordinates) -> list[Coordinates]:
        """Return what should come next and was not planned yet.

        Parameters
        ----------
        number : int
            At most so many.
        grid : tuple of int
            Chunks along each axis: where the run ends, as far as it did not say so itself.
        """
        stops = [
            end if known is None else known for end, known in zip(grid, self._upper, strict=True)
        ]
        here = list(self._end)
        found: list[Coordinates] = []
        while len(found) < number:
            axis = len(here) - 1
            while axis >= 0 and here[axis] + 1 >= stops[axis]:
                axis -= 1
            if axis < 0:
                break
            here[axis] += 1
            here[axis + 1 :] = self.first[axis + 1 :]
            found.append(tuple(here))
        self.ended = len(found) < number
        if found:
            self._stops, self._end = list(stops), found[-1]
            self.planned += len(found)
        return found
