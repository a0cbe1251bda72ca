"""What differs, as a picture: for each array a map of its grid of chunks.

A grid of one dimension is a strip, one of two a map; of more, the two longest sides are shown, and
a cell says which share of the chunks behind it differs. Long sides are summed up in the same way,
so that one changed chunk of a million can be seen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cli.output import printable
from cas_zarr.errors import MissingDependencyError, StorageError

__all__ = ["ADDED", "CHANGED", "MAX_MAPS", "REMOVED", "ChunkMap", "Picture", "draw", "picture_of"]

CHANGED, ADDED, REMOVED = 1, 2, 3
"""What became of a chunk."""

MAX_MAPS = 12
"""How many arrays a picture has room for."""

_MOST_CELLS: Final = 64
_COLOURS: Final = {0: "#e6e8eb", CHANGED: "#e08a1e", ADDED: "#2a9d5c", REMOVED: "#c0392b"}
_NAMES: Final = {0: "unchanged", CHANGED: "changed", ADDED: "added", REMOVED: "removed"}
_RAMPS: Final = {
    CHANGED: ["#f0a12b", "#c8501e", "#5e0f14"],
    ADDED: ["#55b983", "#2a9d5c", "#0f4d2b"],
    REMOVED: ["#dc7468", "#c0392b", "#5c150e"],
}
_WIDEST: Final = 34  # characters of a title
_COLUMNS: Final = 3
_MAP, _STRIP = 3.4, 1.7  # height of a row, in inches


@dataclass(frozen=True, slots=True, eq=False)
class ChunkMap:
    """The chunks of one array that differ.

    Attributes
    ----------
    path : str
    grid : tuple of int
        Chunks along each dimension.
    names : tuple of str
        Names of the dimensions; "" where one has none.
    coordinates : array of int64, shape (n, ndim)
    states : array of uint8, shape (n,)
        `CHANGED`, `ADDED` or `REMOVED`.
    """

    path: str
    grid: tuple[int, ...]
    names: tuple[str, ...]
    coordinates: NDArray[np.int64]
    states: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Cells of a map, rows and columns, as they are drawn.

    `cells` has states, or where `summed` is true the share of chunks that differ.
    """

    cells: NDArray[Any]
    axes: tuple[int, ...]
    step: tuple[int, ...]
    summed: bool


def draw(maps: Sequence[ChunkMap], file: str | Path, *, title: str = "") -> None:
    """Draw maps of chunks into a PNG.

    Parameters
    ----------
    maps : sequence of ChunkMap
        Of more than `MAX_MAPS` the first are drawn, and the rest is counted.
    file : str or path
        The picture; it is replaced.
    title : str

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    StorageError
        If the file cannot be written.
    """
    with warnings.catch_warnings(action="ignore"):  # what matplotlib warns of is not the user's
        data = _png(maps, title)
    try:
        Path(file).write_bytes(data)
    except OSError as error:
        raise StorageError(f"the picture cannot be written to {file}: {error.strerror}") from error


def _png(maps: Sequence[ChunkMap], title: str) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "a picture is drawn by matplotlib, which is not here; install cas_zarr[plot]"
        ) from None
    shown = [(one, picture_of(one)) for one in maps[:MAX_MAPS]]
    columns = max(min(_COLUMNS, len(shown)), 1)
    rows = max(-(-len(shown) // columns), 1)
    heights = [
        _STRIP if all(picture.cells.shape[0] == 1 for _, picture in row) else _MAP
        for row in (shown[start : start + columns] for start in range(0, rows * columns, columns))
    ]
    width = max(4.2 * columns, 6.4)
    figure = Figure(figsize=(width, sum(heights) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_end_of(title, int(width * 11)), fontsize=10)
    grid = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    ).ravel()
    for axes, (one, picture) in zip(grid, shown, strict=False):
        _draw_one(figure, axes, one, picture)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    if not shown:
        figure.text(0.5, 0.5, "no chunk differs", ha="center", va="center", fontsize=12)
    else:
        _legend(figure, shown, len(maps) - len(shown))
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()


def picture_of(one: ChunkMap) -> Picture:
    """Sum a map up to what fits on paper."""
    grid = one.grid
    longest = sorted(range(len(grid)), key=lambda axis: (-grid[axis], axis))
    axes = tuple(sorted(axis for axis in longest[:2] if grid[axis] > 1)) or tuple(longest[:1])
    step = tuple(-(-grid[axis] // _MOST_CELLS) or 1 for axis in axes)
    shape = tuple(max(-(-grid[axis] // by), 1) for axis, by in zip(axes, step, strict=True))
    hidden = int(
        np.prod([grid[axis] for axis in range(len(grid)) if axis not in axes], dtype=float)
    )
    place = tuple(
        np.clip(one.coordinates[:, axis] // by, 0, length - 1)
        for axis, by, length in zip(axes, step, shape, strict=True)
    )
    if hidden <= 1 and max(step, default=1) == 1:
        cells: NDArray[Any] = np.zeros(shape, np.uint8)
        cells[place or ...] = one.states if place else one.states.max(initial=0)
        return Picture(_as_rows(cells), axes, step, False)
    counts = np.zeros(shape)
    np.add.at(counts, place, 1.0)
    chunks = np.full(shape, float(max(hidden, 1)))
    for number, (axis, by) in enumerate(zip(axes, step, strict=True)):
        lengths = np.full(shape[number], by, float)
        lengths[-1] = grid[axis] - by * (shape[number] - 1)
        chunks *= lengths.reshape([-1 if other == number else 1 for other in range(len(axes))])
    return Picture(_as_rows(np.minimum(counts / chunks, 1.0)), axes, step, True)


def _as_rows(cells: NDArray[Any]) -> NDArray[Any]:
    return cells if cells.ndim == 2 else cells.reshape(1, -1)


def _draw_one(figure: Any, axes: Any, one: ChunkMap, picture: Picture) -> None:
    from matplotlib.colors import ListedColormap

    cells = picture.cells
    rows, columns = cells.shape
    aspect = "equal" if rows > 1 and 1 / 4 < rows / columns < 4 else "auto"
    if rows == 1:
        axes.set_box_aspect(1 if columns == 1 else 0.2)
    if picture.summed:
        kinds = np.unique(one.states).tolist()
        kind = kinds[0] if len(kinds) == 1 else CHANGED
        image = axes.imshow(
            np.ma.masked_equal(cells, 0),
            cmap=_share_colours(kind),
            vmin=0,
            vmax=1,
            aspect=aspect,
            interpolation="nearest",
        )
        axes.set_facecolor(_COLOURS[0])
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        bar.ax.tick_params(labelsize=8)
        word = "differ" if kind == CHANGED else _NAMES[kind]
        hidden = [axis for axis in range(len(one.grid)) if axis not in picture.axes]
        behind = [_name_of(one, axis) for axis in hidden if one.grid[axis] > 1]
        where = f" along {' and '.join(behind)}" if behind else " in a cell"
        bar.set_label(_end_of(f"of the chunks{where} {word}", 48), fontsize=8)
    else:
        axes.imshow(
            cells,
            cmap=ListedColormap([_COLOURS[state] for state in sorted(_COLOURS)]),
            vmin=0,
            vmax=3,
            aspect=aspect,
            interpolation="nearest",
        )
        if max(rows, columns) <= 60:
            axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
            axes.grid(which="minor", color="white", linewidth=0.8)
            axes.tick_params(which="minor", length=0)
    axes.set_title(f"{_end_of(one.path or '/', _WIDEST)}\n{_subtitle(one)}", fontsize=9)
    _label(axes, one, picture)


def _label(axes: Any, one: ChunkMap, picture: Picture) -> None:
    sides = [axes.yaxis, axes.xaxis] if len(picture.axes) == 2 else [axes.xaxis]
    if len(picture.axes) < 2:
        axes.set_yticks([])
    if not picture.axes:
        axes.set_xticks([])
        axes.set_xlabel("the only chunk", fontsize=8)
    for side, axis, by in zip(
        sides[-len(picture.axes) :], picture.axes, picture.step, strict=False
    ):
        side.set_label_text(f"{_end_of(_name_of(one, axis), 24)} (chunk)", fontsize=8)
        ticks = range(0, max(one.grid[axis], 1), _even(one.grid[axis]))
        side.set_ticks([(tick + 0.5) / by - 0.5 for tick in ticks], [f"{tick:,}" for tick in ticks])
        side.set_tick_params(labelsize=8)


def _name_of(one: ChunkMap, axis: int) -> str:
    return (one.names[axis] if axis < len(one.names) else "") or f"dimension {axis}"


def _even(length: int) -> int:
    """Return a round distance of at most seven ticks along a side."""
    steps = (digit * int(10**zeros) for zeros in range(20) for digit in (1, 2, 5))
    return next(step for step in steps if length <= 7 * step)


def _subtitle(one: ChunkMap) -> str:
    total = int(np.prod(one.grid, dtype=float))
    counts = [
        f"{count:,} {_NAMES[state]}"
        for state in (CHANGED, ADDED, REMOVED)
        if (count := int(np.count_nonzero(one.states == state)))
    ]
    return f"{', '.join(counts) or 'none'} of {total:,} chunk{'' if total == 1 else 's'}"


def _share_colours(state: int) -> Any:
    """Return colours for shares; the least one is far from that of none."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", _RAMPS[state])


def _legend(figure: Any, shown: Sequence[tuple[ChunkMap, Picture]], left: int) -> None:
    from matplotlib.patches import Patch

    found = {0}
    for one, picture in shown:
        if not picture.summed:
            found |= set(np.unique(one.states).tolist())
    handles = [
        Patch(facecolor=_COLOURS[state], edgecolor="#999999", label=_NAMES[state])
        for state in sorted(found)
    ]
    if left:
        text = f"and {left:,} more array{'' if left == 1 else 's'}, not drawn"
        handles.append(Patch(alpha=0, label=text))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)


def _end_of(text: str, width: int) -> str:
    """Return text that has room: its end, which of a path says most; nothing reads as a formula."""
    text = printable(text)
    text = text if len(text) <= width else "…" + text[-(width - 1) :]
    return text.replace("$", r"\$")
