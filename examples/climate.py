"""Two climate scenarios and three months of ocean in one repository.

Imports real data that the package `iris-sample-data` ships (Met Office and NEMO, Open Government
Licence), shows what content addressing gives, and ends with a picture::

    python examples/climate.py --output demo-output
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import iris_sample_data
import matplotlib

matplotlib.use("Agg")  # a picture in a file; no display is needed

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.colors import TwoSlopeNorm

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid
from cas_zarr.errors import CorruptBlockError
from cas_zarr.mapping import CASMapping
from cas_zarr.netcdf import import_netcdf
from cas_zarr.repository.stats import dataset_stats

DATA = Path(iris_sample_data.path)
FILES = {
    "scenarios/A1B": DATA / "A1B_north_america.nc",
    "scenarios/E1": DATA / "E1_north_america.nc",
    "nemo/2015-01": DATA / "NEMO" / "nemo_1m_20150101-20150201_grid-T.nc",
    "nemo/2015-02": DATA / "NEMO" / "nemo_1m_20150201-20150301_grid-T.nc",
    "nemo/2015-03": DATA / "NEMO" / "nemo_1m_20150301-20150401_grid-T.nc",
}
FIELDS = ("scenarios/A1B/air_temperature", "scenarios/E1/air_temperature")
STEPS = 10  # time steps in a chunk
CHUNKS = 24


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def import_all(repository: Repository) -> None:
    """Write each file as a group of its own, a commit for each."""
    heading("1. Import: each file becomes chunked Zarr, value for value")
    with repository.session() as session:
        for path, file in FILES.items():
            chunks = {"time": STEPS} if "north_america" in file.name else None
            report = import_netcdf(file, session, path=path, chunks=chunks)
            session.commit(f"import {file.name}")
            root = session.root
            print(f"{path:<13} {report.keys:>3} keys {report.size / 1e6:6.2f} MB   root", end=" ")
            print(format_cid(root) if root else "none")


def show_dedupe(mapping: CASMapping) -> None:
    """Print what is stored once although it was written more often."""
    heading("2. Dedupe: what is equal is stored once")
    for path, what in (
        ("scenarios", "two scenarios"),
        ("nemo", "three months of ocean"),
        ("", "all"),
    ):
        stats = dataset_stats(mapping.blocks, mapping.root, path)
        print(
            f"{what:<21} {stats.logical / 1e6:5.2f} MB written, {stats.stored / 1e6:5.2f} MB stored"
            f", {stats.saved / stats.logical:.0%} saved"
        )
        for node in stats.nodes if path else ():
            if node.shared > 50_000:
                print(f"    {node.path:<29} {node.shared / node.stored:4.0%} is in others too")


def compare(mapping: CASMapping) -> list[bool]:
    """Tell for each chunk of the two scenarios whether it differs; no chunk is read."""
    heading("3. Compare: which chunks of A1B and E1 differ, by their CIDs alone")
    differs = []
    for number in range(CHUNKS):
        cids = [mapping.cid_of(f"{name}/c/{number}/0/0") for name in FIELDS]
        differs.append(cids[0] != cids[1])
    print("".join("#" if different else "=" for different in differs), " (= same, # different)")
    print(f"{differs.count(False)} of {CHUNKS} chunks are the same block")
    for box in ((0, 14), (14, 24)):
        ranges = (box, (0, 1), (0, 1))
        same = len({mapping.cid(name, ranges) for name in FIELDS}) == 1
        print(
            f"chunks {box[0]:>2} to {box[1] - 1}: the boxes {'have one CID' if same else 'differ'}"
        )
    return differs


def check(repository: Repository, version: str) -> None:
    """Read everything back with xarray, by the root CID, and compare with the files."""
    heading("4. Read back by the root CID, and compare with the netCDF files")
    store = CASStore(repository, version=version)
    for path, file in FILES.items():
        with (
            xr.open_dataset(file, engine="netcdf4") as expected,
            xr.open_zarr(store, group=path) as found,
        ):
            xr.testing.assert_identical(found.load(), expected.load())
        print(f"{path:<13} identical: values, types, dimensions, attributes")


def damage(folder: Path, version: str) -> None:
    """Flip one bit of a chunk in a copy of the repository, and try to read the chunk."""
    heading("5. Flip one bit in a pack: the read refuses it")
    copy = folder.with_name("damaged.cas")
    shutil.copytree(folder, copy)
    key = f"{FIELDS[0]}/c/7/0/0"
    chunk = bytes(CASStore(folder, version=version).mapping.get_value(key) or b"")
    for pack in sorted((copy / "packs").glob("*.car")):
        data = bytearray(pack.read_bytes())
        at = data.find(chunk)
        if at >= 0:
            data[at + len(chunk) // 2] ^= 1
            pack.chmod(0o644)
            pack.write_bytes(data)
            print(f"flipped a bit of {key}\nin {pack}")
    store = CASStore(copy, version=version)
    with xr.open_zarr(store, group="scenarios/A1B", chunks=None) as dataset:
        print(f"chunk 6: mean {float(dataset.air_temperature[60:70].mean()):.2f} K")
        try:
            dataset.air_temperature[70:80].load()
        except CorruptBlockError as error:
            print("chunk 7: refused:", error)
        else:
            raise SystemExit("a damaged chunk was read")
    shutil.rmtree(copy)


def draw(repository: Repository, version: str, differs: list[bool], picture: Path) -> None:
    """Draw the map of differing chunks over the difference of the fields."""
    store = CASStore(repository, version=version)
    with (
        xr.open_zarr(store, group="scenarios/A1B") as a1b,
        xr.open_zarr(store, group="scenarios/E1") as e1,
    ):
        first, second = a1b.air_temperature.load(), e1.air_temperature.load()
    difference = (first - second).values
    years = np.array([time.year + (time.month - 1) / 12 for time in first.time.values])
    edges = np.append(years[::STEPS], years[-1] + 1)
    latitude, longitude = first.latitude.values, first.longitude.values - 360
    weights = np.cos(np.deg2rad(latitude))[None, :, None]
    means = [
        (field.values * weights).mean(axis=(1, 2)) / weights.mean() - 273.15
        for field in (first, second)
    ]
    limit = float(np.ceil(np.percentile(np.abs(difference), 99.9)))
    colours = {"cmap": "RdBu_r", "norm": TwoSlopeNorm(0, -limit, limit), "shading": "nearest"}
    same_colour, other_colour = "#8795a1", "#d9480f"
    shades = [other_colour if different else same_colour for different in differs]

    figure = plt.figure(figsize=(13, 10.4), layout="constrained")
    grid = figure.add_gridspec(4, 4, height_ratios=[2.2, 0.5, 3.2, 2.8])
    lines = figure.add_subplot(grid[0, :])
    strip = figure.add_subplot(grid[1, :], sharex=lines)
    field = figure.add_subplot(grid[2, :], sharex=lines)
    panels = [figure.add_subplot(grid[3, column]) for column in range(4)]

    lines.plot(years, means[0], color="#c92a2a", lw=1.3, label="A1B: medium emissions")
    lines.plot(years, means[1], color="#1864ab", lw=1.3, label="E1: strong mitigation")
    lines.set_ylabel("mean temperature (°C)")
    lines.legend(loc="upper left", frameon=False)
    lines.set_title("Air temperature over North America in two scenarios", loc="left")
    lines.tick_params(labelbottom=False)

    for number, shade in enumerate(shades):
        left, right = edges[number], edges[number + 1]
        strip.axvspan(left, right, color=shade, lw=0)
        strip.axvline(left, color="white", lw=1.5)
        strip.text((left + right) / 2, 0.5, str(number), ha="center", va="center", color="white")
    strip.set_yticks([])
    strip.tick_params(labelbottom=False)
    shared = differs.count(False)
    strip.set_title(
        f"Their {CHUNKS} chunks of {STEPS} years by CID: {shared} are one block (grey), "
        f"{CHUNKS - shared} differ (orange)",
        loc="left",
    )

    zonal = difference.mean(axis=2).T
    mesh = field.pcolormesh(years, latitude, zonal, **colours)
    for number, shade in enumerate(shades):
        left, right = edges[number], edges[number + 1]
        if not differs[number]:
            field.axvspan(left, right, facecolor="none", edgecolor=shade, hatch="///", lw=0)
        field.axvline(left, color=shade, lw=0.8)
    field.set_ylabel("latitude (°N)")
    field.set_xlim(edges[0], edges[-1])
    field.set_title(
        "A1B minus E1, mean over longitude: zero (hatched) exactly where the CIDs agree", loc="left"
    )

    for panel, number in zip(panels, (13, 14, 18, 23), strict=True):
        mean = difference[number * STEPS : (number + 1) * STEPS].mean(axis=0)
        panel.pcolormesh(longitude, latitude, mean, **colours)
        for side in panel.spines.values():
            side.set(color=shades[number], linewidth=3)
        start = int(edges[number])
        word = "differ" if differs[number] else "one block"
        panel.set_title(
            f"chunk {number}, {start} to {start + STEPS}: {word}", color=shades[number], fontsize=11
        )
        panel.set_xlabel("longitude (°E)")
    panels[0].set_ylabel("latitude (°N)")
    bar = figure.colorbar(mesh, ax=[field, *panels], aspect=40, pad=0.01, extend="both")
    bar.set_label("A1B minus E1 (K)")
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    output: Path = parser.parse_args().output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    folder = output / "climate.cas"

    repository = Repository.open(folder, create=True, author="the demo")
    import_all(repository)
    mapping = repository.at("main")
    version = format_cid(repository.resolve("main").root)
    show_dedupe(mapping)
    differs = compare(mapping)
    check(repository, version)
    damage(folder, version)
    heading("6. The picture")
    picture = output / "scenarios.png"
    draw(repository, version, differs, picture)
    print(f"{picture}: which chunks differ, over the difference of the fields")
    print(f"look around: .venv/bin/cas-zarr ls -r {folder}")


if __name__ == "__main__":
    main()
