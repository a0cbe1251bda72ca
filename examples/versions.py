"""Sea surface temperature under version control: two years of months, a correction, a release.

Imports monthly means that the package `iris-sample-data` ships (OSTIA, Met Office, Open Government
Licence), a commit for each month, and does to them what happens to data in practice: a release is
tagged, two people correct the same month, both corrections are merged, an experiment is thrown
away, and a colleague takes just the part that she needs. Ends with a picture::

    python examples/versions.py --output demo-output
"""

from __future__ import annotations

import argparse
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import iris_sample_data
import matplotlib

matplotlib.use("Agg")  # a picture in a file; no display is needed

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
import zarr
from matplotlib.colors import ListedColormap, TwoSlopeNorm

from cas_zarr import CASStore, ConflictError, Repository
from cas_zarr.cid import format_cid

FILE = Path(iris_sample_data.path) / "ostia_monthly.nc"
FIELD = "surface_temperature"
MONTHS = 24
WIDTH = 72  # longitudes in a chunk: 60 degrees; a chunk has one month
CORRECTED = 8  # December 2006
PACIFIC = slice(180, 330)  # longitudes 150°E to 275°E
COLUMN = slice(216, 288)  # longitudes 180°E to 240°E


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def month_of(number: int) -> str:
    return str(np.datetime64("2006-04") + np.timedelta64(number, "M"))


def open_at(repository: Repository, version: str) -> xr.Dataset:
    """Open a version with xarray."""
    return xr.open_zarr(CASStore(repository, version=version), consolidated=False, chunks=None)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def import_months(repository: Repository, source: xr.Dataset) -> None:
    """Append one month after the other, and make each a commit that bears the time of its data."""
    heading(f"1. Import: {MONTHS} months, a commit each")
    encoding: dict[Any, dict[str, Any]] = {}
    for name, variable in source.variables.items():
        kept = {k: v for k, v in variable.encoding.items() if k in ("dtype", "units", "calendar")}
        sizes = {"time": 1 if variable.ndim == 3 else MONTHS, "longitude": WIDTH}
        encoding[name] = {
            **kept,
            "_FillValue": variable.encoding.get("_FillValue"),
            "chunks": tuple(sizes.get(str(dim), size) for dim, size in variable.sizes.items()),
        }
    fixed = [name for name, variable in source.variables.items() if "time" not in variable.dims]
    for number in range(MONTHS):
        month = source.isel(time=slice(number, number + 1)).drop_encoding()
        store = CASStore(repository)
        if number == 0:
            month.to_zarr(store, encoding=encoding, zarr_format=3, consolidated=False)
        else:
            month.drop_vars(fixed).to_zarr(store, append_dim="time", consolidated=False)
        when = source.time.values[number].astype("datetime64[us]").astype(np.int64)
        store.commit(f"SST of {month_of(number)}", time=int(when))
    newest = next(repository.log())
    print(f"{MONTHS} commits; the newest is {format_cid(newest.cid)}: {newest.commit.message}")
    tag = repository.create_tag("v1", "main@2007-03-31")
    print(f"tag v1, the first year, is what main was on 2007-03-31: {format_cid(tag)}")
    for version, months in (("v1", 12), ("main~3", MONTHS - 3), ("main", MONTHS)):
        xr.testing.assert_identical(
            open_at(repository, version).load(), source.isel(time=slice(0, months))
        )
        print(f"{version:<7} read back: {months} months, identical to the netCDF file")


def correct(repository: Repository, branch: str, where: slice, by: float, message: str) -> None:
    """Add something to one month of a band of longitudes, and commit."""
    store = CASStore(repository, branch=branch)
    zarr.open_array(store, path=FIELD, mode="r+")[CORRECTED, :, where] += np.float32(by)
    store.commit(message)


def correct_twice(repository: Repository) -> None:
    """Let two people correct the same month without knowing of each other."""
    heading(f"2. Two corrections of {month_of(CORRECTED)}, on branches of their own")
    repository.create_branch("buoys", "main")
    correct(repository, "buoys", PACIFIC, 0.25, "Pacific: adjust to buoys, +0.25 K")
    correct(repository, "main", slice(0, 240), 0.1, "0°E to 200°E: satellite drift, +0.10 K")
    for branch in ("buoys", "main"):
        for change in repository.diff("main~1", branch):
            print(f"{branch:<5}: {change.summary()}")
            for box in change.boxes:
                print(f"       [{', '.join(f'{side.start}:{side.stop}' for side in box)}]")


def merge(repository: Repository) -> None:
    """Merge the corrections; where both changed a chunk, add them up."""
    heading("3. Merge: chunks that both changed are a conflict, which a function resolves")
    try:
        repository.merge("buoys")
    except ConflictError as error:
        for conflict in error.conflicts:
            print(f"conflict: {conflict.reason}")
    result = repository.merge(
        "buoys",
        message=f"add up both corrections of {month_of(CORRECTED)}",
        resolve=lambda base, ours, theirs: ours + theirs - base,
    )
    assert result.commit is not None
    print(f"{result.kind}: {len(result.resolved)} chunks added up; {format_cid(result.commit)}")
    print("\nwho changed chunk column 3 (180°E to 240°E) of that month?")
    for entry in repository.log(path=FIELD, box=[(CORRECTED, CORRECTED + 1), (0, 1), (3, 4)]):
        print(f"  {entry.commit.message}")


def throw_away(repository: Repository, folder: Path) -> None:
    """Try something on a branch, drop it, and get the room back."""
    heading("4. An experiment is dropped, and its bytes are collected")
    before = size_of(folder)
    repository.create_branch("experiment")
    store = CASStore(repository, branch="experiment")
    noise = np.random.default_rng(1).normal(0, 0.3, (MONTHS, 18, 432)).astype("float32")
    array = zarr.open_array(store, path=FIELD, mode="r+")
    array[:] = array[:] + noise
    store.commit("what if every value were noisy?")
    print(
        f"repository: {before / 1e6:5.2f} MB, with the experiment {size_of(folder) / 1e6:5.2f} MB"
    )
    repository.delete_branch("experiment")
    kept = repository.gc(grace=timedelta(0))
    print(f"deleted, collected: {kept.deleted_size / 1e6:.2f} MB; the log still has the branch,")
    print(f"as {repository.resolve('experiment@{1}').name}, for 30 days: nothing of it is lost yet")
    report = repository.gc(grace=timedelta(0), log_age=timedelta(0), max_unused=0.0)
    print(
        f"log dropped, collected: {report.deleted_blocks} blocks, "
        f"{report.deleted_size / 1e6:.2f} MB; repository: {size_of(folder) / 1e6:5.2f} MB"
    )
    print(f"verify reads every block: {'all is well' if repository.verify(data=True).ok else 'no'}")


def share(repository: Repository, output: Path) -> None:
    """Push to a second folder, and clone one region from there."""
    heading("5. Push to another place; clone one region from there")
    with Repository.open(output / "shared.cas", create=True) as shared:
        report = repository.push(shared, branches=["main", "buoys"], tags=["v1"])
        print(
            f"pushed {report.commits} commits, {report.blocks} blocks, {report.size / 1e6:.2f} MB"
        )
        again = repository.push(shared, branches=["main", "buoys"], tags=["v1"])
        print(f"pushed again: {again.blocks} blocks")
    shared_folder, region_folder = output / "shared.cas", output / "region.cas"
    region = f"{FIELD}[:, :, {COLUMN.start}:{COLUMN.stop}]"
    others = [str(name) for name in open_at(repository, "main").variables if name != FIELD]
    Repository.clone(shared_folder, region_folder, paths=[region, *others]).close()
    print(f"{region}: {size_of(region_folder) / 1e6:.2f} MB", end=" ")
    print(f"of {size_of(shared_folder) / 1e6:.2f} MB, with the history of {MONTHS + 3} commits")
    away = shared_folder.rename(output / "out of reach.cas")
    with Repository.open(region_folder) as partial:
        for version in ("v1", "main"):
            here, there = (open_at(one, version)[FIELD] for one in (partial, repository))
            xr.testing.assert_identical(here[..., COLUMN].load(), there[..., COLUMN].load())
            print(f"{version:<4} of the region, while its source is out of reach: identical")
    away.rename(shared_folder)


def draw(repository: Repository, picture: Path) -> None:
    """Draw a month before and after its correction, and which chunks differ."""
    versions = {"main before (main~2)": "main~2", "main now": "main"}
    fields = [open_at(repository, version)[FIELD].load() for version in versions.values()]
    before, after = (field[CORRECTED] - 273.15 for field in fields)
    longitude, latitude = before.longitude.values, before.latitude.values
    (change,) = repository.diff("main~2", "main")
    changed = np.zeros((MONTHS, 432 // WIDTH))
    for month, _, column in change.coordinates:
        changed[month, column] = 1

    figure, panels = plt.subplots(
        4, 1, figsize=(11, 9.2), layout="constrained", height_ratios=[1, 1, 1, 1.7]
    )
    limits = {"vmin": 20, "vmax": 31, "cmap": "RdYlBu_r", "shading": "nearest"}
    for panel, field, name in zip(panels, (before, after), versions, strict=False):
        mesh = panel.pcolormesh(longitude, latitude, field.values, **limits)
        panel.set_title(f"{name}: sea surface temperature, {month_of(CORRECTED)}", loc="left")
        figure.colorbar(mesh, ax=panel, label="°C", pad=0.01)
    mesh = panels[2].pcolormesh(
        longitude,
        latitude,
        (after - before).values,
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0, -0.4, 0.4),
        shading="nearest",
    )
    panels[2].set_title("difference: one correction, both, the other", loc="left")
    for place, text in ((72, "+0.10 K"), (175, "+0.35 K"), (237, "+0.25 K"), (345, "0")):
        colour = "white" if 150 < place < 300 else "black"
        panels[2].text(place, -4, text, ha="center", va="center", color=colour)
    figure.colorbar(mesh, ax=panels[2], label="K", pad=0.01)
    for panel in panels[:3]:
        panel.set_facecolor("#adb5bd")  # land
        panel.set_ylabel("latitude (°N)")
        panel.tick_params(labelbottom=False)

    colours = ListedColormap(["#dee2e6", "#d9480f"])
    edges = np.arange(0, 361, 60)
    panels[3].pcolormesh(edges, np.arange(MONTHS + 1), changed, cmap=colours, ec="white", lw=1.5)
    panels[3].set_yticks(np.arange(0, MONTHS, 4) + 0.5, map(month_of, range(0, MONTHS, 4)))
    panels[3].invert_yaxis()
    panels[3].set_xlabel("longitude (°E)")
    panels[3].set_title(
        f"chunks of one month and 60 degrees: {int(changed.sum())} of {changed.size} differ "
        "(orange), found by their CIDs alone",
        loc="left",
    )
    for panel in panels:
        panel.set_xlim(0, 360)
        panel.set_xticks(edges)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    output = parser.parse_args().output / "versions"
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    folder = output / "sst.cas"

    with xr.open_dataset(FILE, engine="netcdf4") as source:
        months = source.isel(time=slice(0, MONTHS)).load()
    repository = Repository.open(folder, create=True, author="the demo")
    import_months(repository, months)
    correct_twice(repository)
    merge(repository)
    throw_away(repository, folder)
    share(repository, output)
    heading("6. The picture")
    picture = output.parent / "versions.png"
    draw(repository, picture)
    print(f"{picture}: the month before and after, and which chunks differ")
    print(f"look around: cas-zarr log {folder} --graph")
    repository.close()


if __name__ == "__main__":
    main()
