"""What two sides changed in two ways, and who decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from cas_zarr.cid import ReadableCids
from cas_zarr.errors import ConflictError, InvalidArgumentError
from cas_zarr.tree.fields import Side
from cas_zarr.tree.keys import chunk_key
from cas_zarr.tree.node import Value

__all__ = ["Choice", "Conflict", "Kind", "Resolver", "raise_conflicts"]

Kind: TypeAlias = Literal["chunk", "document", "key", "node", "layout"]

_SIDES: Final = ("base", "ours", "theirs")
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, repr=False)
class Conflict(ReadableCids):
    """One thing that both sides changed, to different values.

    Attributes
    ----------
    path : str
        The array, group or folder.
    kind : "chunk", "document", "key", "node" or "layout"
        A chunk, a document or a plain key of the node was set twice; or the node, with all that
        is below it, was deleted on one side and changed on the other; or its layout (its documents
        but for the attributes) was changed on one side and it was written to on the other.
    name : str
        The form of a chunk's tree, as ``c/3``; the name of a document or a key; else "".
    coordinates : tuple of int or None
        Of a chunk.
    base, ours, theirs : Value, bytes or None
        What was there and is there on either side: CID and size of a chunk or a key, the bytes of
        a document, None where there is none. All None for a node and a layout.
    reason : str
        What happened, for people.
    """

    path: str
    kind: Kind
    name: str = ""
    coordinates: tuple[int, ...] | None = None
    base: Value | bytes | None = None
    ours: Value | bytes | None = None
    theirs: Value | bytes | None = None
    reason: str = ""

    def __str__(self) -> str:
        return self.reason

    @property
    def key(self) -> str:
        """The key that is in conflict; the node's path for a node and a layout."""
        base = f"{self.path}/" if self.path else ""
        if self.coordinates is not None:
            return base + chunk_key(self.name, self.coordinates)
        return base + self.name if self.name else self.path

    def of(self, side: Side) -> Value | bytes | None:
        """Return what one side has."""
        return {"base": self.base, "ours": self.ours, "theirs": self.theirs}[side]

    def side(self, choice: Choice) -> Side | None:
        """Return the side that a choice names, None if it is a value of its own.

        Raises
        ------
        InvalidArgumentError
            If it is neither, or a value where only a side can be chosen.
        """
        if isinstance(choice, str):
            if choice not in _SIDES:
                raise InvalidArgumentError(
                    f"{choice!r} decides nothing about {self.key!r}; choose 'base', 'ours' or "
                    "'theirs', or give what to put there"
                )
            return choice
        allowed = {"chunk": (Value, bytes), "key": (Value, bytes), "document": (bytes,)}
        types = allowed.get(self.kind)
        if types is None or not (choice is None or isinstance(choice, types)):
            raise InvalidArgumentError(
                f"{type(choice).__name__} cannot be put in place of {self.kind} {self.key!r}; "
                "choose 'base', 'ours' or 'theirs'"
            )
        return None


Choice: TypeAlias = "Side | Value | bytes | None"
"""A side, whose value is taken; or what to put there; None puts nothing there."""

Resolver: TypeAlias = Callable[[Conflict], Choice]


def raise_conflicts(conflicts: Sequence[Conflict]) -> None:
    """Raise a ConflictError that names some of the conflicts and has all, if there are any."""
    if conflicts:
        more = f" and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
        shown = "; ".join(conflict.reason for conflict in conflicts[:_SHOWN])
        raise ConflictError(
            f"another writer changed the same thing: {shown}{more}; open the branch anew and "
            "apply your change to what is there now, or say how to resolve it",
            conflicts,
        )
