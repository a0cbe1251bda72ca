"""What in a node's documents says how its chunks read: everything but the attributes.

A layout that changes under a writer makes what it writes unreadable. One change does not: where
only the shape of an array on a regular grid is another, chunks inside the new grid stay what they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cas_zarr.tree.fields import parse, text_of
from cas_zarr.tree.keys import DOCUMENTS, form_of
from cas_zarr.tree.morton import COORDINATE_BITS

__all__ = [
    "ATTRIBUTES",
    "LAYOUT_DOCUMENTS",
    "Layout",
    "Resize",
    "layout_of",
    "resize",
    "same_layout",
]

ATTRIBUTES: Final = frozenset({"attributes", "consolidated_metadata"})
"""Members of a document that are no layout."""

LAYOUT_DOCUMENTS: Final = tuple(sorted(DOCUMENTS - {".zattrs", ".zmetadata"}))
"""Documents that are a layout, but for those members."""

Layout: TypeAlias = "Mapping[str, Any]"

_BEYOND: Final = 1 << COORDINATE_BITS  # no chunk lies there


@dataclass(frozen=True, slots=True)
class Resize:
    """Another shape for an array on a regular grid.

    Attributes
    ----------
    before, after : tuple of int
        Shapes, in elements.
    form : str
        The form of the tree that has the array's chunks.
    grid : tuple of int
        How many chunks the new shape has along each axis.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    form: str
    grid: tuple[int, ...]

    def outside(self, coordinates: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which chunks, coordinates of shape (n, ndim), lie outside the new grid."""
        grid = [min(side, _BEYOND) for side in self.grid]  # a shape can be of any size
        beyond: NDArray[np.bool_] = np.greater_equal(coordinates, np.array(grid, np.int64))
        out: NDArray[np.bool_] = np.logical_or.reduce(beyond, axis=1)
        return out


def layout_of(documents: Mapping[str, bytes | None]) -> Layout:
    """Return the layout that the documents of a node make, by the document's name."""
    layout = {}
    for name in LAYOUT_DOCUMENTS:
        document = documents.get(name)
        if document is not None:
            value = parse(document)
            if isinstance(value, dict):
                value = {key: entry for key, entry in value.items() if key not in ATTRIBUTES}
            layout[name] = value
    return layout


def same_layout(a: Layout, b: Layout) -> bool:
    """Tell whether two layouts are equal, in whatever order their members come."""
    return a.keys() == b.keys() and all(text_of(a[name]) == text_of(b[name]) for name in a)


def resize(before: Layout, after: Layout) -> Resize | None:
    """Return how an array was resized; None if more was changed, or the grid is not regular."""
    names = [
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or text_of(before[name]) != text_of(after[name])
    ]
    if len(names) != 1 or names[0] not in before or names[0] not in after:
        return None
    old, new = before[names[0]], after[names[0]]
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None
    if text_of({**old, "shape": 0}) != text_of({**new, "shape": 0}):
        return None
    shapes = _sizes(old.get("shape"), 0), _sizes(new.get("shape"), 0)
    chunks, kind = _regular(names[0], new)
    if None in shapes or chunks is None or shapes[0] is None or shapes[1] is None:
        return None
    if not len(shapes[0]) == len(shapes[1]) == len(chunks):
        return None
    grid = tuple(-(-side // step) for side, step in zip(shapes[1], chunks, strict=True))
    return Resize(shapes[0], shapes[1], form_of(kind, len(grid)), grid)


def _regular(name: str, document: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, str]:
    """Return the chunk shape of an array on a regular grid, and the kind of its chunk keys."""
    if name == ".zarray":
        kind = "/" if document.get("dimension_separator") == "/" else "."
        chunks = _sizes(document.get("chunks"), 1)
    elif name == "zarr.json" and document.get("node_type") == "array":
        kind = _kind(document.get("chunk_key_encoding"))
        grid = document.get("chunk_grid")
        if not isinstance(grid, dict) or grid.get("name") != "regular":
            return None, ""
        chunks = _sizes(_configuration(grid).get("chunk_shape"), 1)
    else:
        return None, ""
    if kind == "/" and chunks is not None and len(chunks) == 1:
        kind = "."  # the one number of a key has no separator
    return chunks, kind


def _kind(encoding: Any) -> str:
    name = encoding.get("name") if isinstance(encoding, dict) else encoding
    separator = _configuration(encoding).get("separator")
    if name == "v2":
        return "/" if separator == "/" else "."
    return "c." if separator == "." else "c/"


def _configuration(value: Any) -> Mapping[str, Any]:
    configuration = value.get("configuration") if isinstance(value, dict) else None
    return configuration if isinstance(configuration, dict) else {}


def _sizes(value: Any, least: int) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(side) is int and side >= least for side in value):
        return tuple(value)
    return None
