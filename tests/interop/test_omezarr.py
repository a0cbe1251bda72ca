"""ome-zarr writes images and labels into a `CASStore` and reads them back from a commit."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

da = pytest.importorskip("dask.array")
zarr = pytest.importorskip("zarr", minversion="3.1")
pytest.importorskip("ome_zarr.writer", reason="ome-zarr is not installed")

if tuple(map(int, version("ome-zarr").split(".")[:2])) < (0, 21):
    pytest.skip(
        "ome-zarr 0.21, which needs Python 3.12, is not installed: older ones take no store",
        allow_module_level=True,
    )

from ome_zarr.format import FormatV04, FormatV05  # noqa: E402
from ome_zarr.io import parse_url  # noqa: E402
from ome_zarr.reader import Reader  # noqa: E402
from ome_zarr.writer import write_image, write_labels  # noqa: E402

from cas_zarr import CASStore  # noqa: E402


def _image() -> Any:
    y, x = np.mgrid[0:128, 0:160]
    channels = [1000 + 900 * np.sin(x / (9 + 4 * c)) * np.cos(y / 11) for c in range(3)]
    return np.stack(channels).astype("uint16")


@pytest.mark.parametrize("lazy", [False, True], ids=["numpy", "dask"])
@pytest.mark.parametrize("ome_format", [FormatV04(), FormatV05()], ids=["0.4", "0.5"])
def test_image_and_labels_come_back(tmp_path: Path, ome_format: Any, lazy: bool) -> None:
    image = _image()
    cells = (image[0] > 1000).astype("uint8")
    with CASStore(tmp_path / "image.cas") as store:
        group = zarr.open_group(store, mode="w", zarr_format=ome_format.zarr_format)
        source = da.from_array(image, chunks=(1, 64, 64)) if lazy else image
        options = {"chunks": (1, 32, 32)}
        write_image(source, group, axes="cyx", fmt=ome_format, storage_options=options)
        write_labels(cells, group, name="cells", axes="yx", fmt=ome_format)
        store.commit("image")

    version = CASStore(tmp_path / "image.cas", version="main")
    location = parse_url(version, fmt=ome_format)
    assert location is not None
    nodes = list(Reader(location)())
    levels = nodes[0].data
    assert [level.shape for level in levels[:3]] == [(3, 128, 160), (3, 64, 80), (3, 32, 40)]
    np.testing.assert_array_equal(levels[0].compute(), image)
    np.testing.assert_array_equal(nodes[2].data[0].compute(), cells)


def test_an_edit_shares_all_other_tiles(tmp_path: Path) -> None:
    image = _image()
    with CASStore(tmp_path / "image.cas") as store:
        group = zarr.open_group(store, mode="w", zarr_format=3)
        options = {"chunks": (1, 32, 32)}
        write_image(image, group, axes="cyx", fmt=FormatV05(), storage_options=options)
        first = store.commit("image")
        name = group.attrs["ome"]["multiscales"][0]["datasets"][0]["path"]
        before = store.cid(name, box=((1, 3), (0, 4), (0, 5)))
        group[name][0, :10, :10] = 0
        second = store.commit("a dark corner")
        assert first != second
        assert store.cid(name, box=((1, 3), (0, 4), (0, 5))) == before
        assert store.cid(name, box=((0, 1), (1, 4), (0, 5))) is not None
    old = zarr.open_array(CASStore(tmp_path / "image.cas", version="main~1"), path=name, mode="r")
    np.testing.assert_array_equal(old[...], image)
