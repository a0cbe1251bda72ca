"""netCDF files become Zarr value for value."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_array_equal

from cas_zarr import CASStore, Repository
from cas_zarr.errors import InvalidArgumentError, InvalidKeyError, NotFoundError

with warnings.catch_warnings():  # numpy's own word on the sizes of its types, see its FAQ
    warnings.filterwarnings("ignore", message="numpy.ndarray size changed")
    import iris_sample_data
    import netCDF4

from cas_zarr.netcdf import import_netcdf, parse_codec

SAMPLES = Path(iris_sample_data.path)


@pytest.fixture(autouse=True)
def _unspecified_types() -> Iterator[None]:
    """Let zarr say that fixed-length bytes have no specification in format 3."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        yield


def assert_equal(file: Path, store: CASStore, path: str = "", group: str = "") -> None:
    at = "/".join(part for part in (path, group) if part)
    for decode in (False, True):
        with (
            xr.open_dataset(
                file, engine="netcdf4", group=group or None, decode_cf=decode
            ) as expected,
            xr.open_zarr(store, group=at or None, decode_cf=decode, chunks=None) as found,
        ):
            xr.testing.assert_identical(found.load(), expected.load())
            types = {name: variable.dtype for name, variable in expected.variables.items()}
            assert {name: variable.dtype for name, variable in found.variables.items()} == types


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "name",
    [
        "A1B_north_america.nc",  # 360-day calendar
        "NEMO/nemo_1m_20150101-20150201_grid-T.nc",  # _FillValue, two-dimensional coordinates
        "atlantic_profiles.nc",
        "mesh_C4_synthetic_float.nc",
        "space_weather.nc",  # characters
        "vlstr_type.nc",  # text of any length
    ],
)
def test_samples(name: str, zarr_format: int) -> None:
    store = CASStore(Repository.memory())
    report = import_netcdf(
        SAMPLES / name,
        store.session,  # type: ignore[arg-type]
        path="a/b",
        zarr_format=zarr_format,
    )
    assert report.keys == len(list(store.mapping.list_keys("a/b/")))
    assert report.size == store.mapping.prefix_size("a/b")
    assert_equal(SAMPLES / name, store.with_read_only(True), "a/b")


def test_two_imports_have_one_root_and_chunks_as_asked() -> None:
    file = SAMPLES / "A1B_north_america.nc"
    roots = set()
    for _ in range(2):
        session = Repository.memory().session()
        calls: list[tuple[int, int]] = []
        import_netcdf(
            file,
            session,
            chunks={"time": 100, "latitude": -1},
            progress=lambda done, total, calls=calls: calls.append((done, total)),  # type: ignore[misc]
        )
        roots.add(session.root)
        names = [key for key in session.mapping if key.startswith("air_temperature/c/")]
        assert sorted(names) == [f"air_temperature/c/{number}/0/0" for number in range(3)]
        assert calls[-1][0] == calls[-1][1]
    assert len(roots) == 1


def test_the_default_chunk_is_a_block(tmp_path: Path) -> None:
    file = tmp_path / "large.nc"
    values = np.random.default_rng(0).standard_normal((7, 300, 1000)).astype("f4")
    xr.Dataset({"x": (("a", "b", "c"), values)}).to_netcdf(file, engine="netcdf4")
    session = Repository.memory().session()
    import_netcdf(file, session, codec="none")
    sizes = [session.mapping.size_of(key) for key in session.mapping if "/c/" in key]
    assert sizes == [262 * 1000 * 4] * len(sizes)
    assert len(sizes) == 7 * 2


def test_groups_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "groups.nc"
    with netCDF4.Dataset(file, "w") as dataset:
        dataset.createDimension("x", 3)
        dataset.createVariable("top", "i4", ("x",))[:] = [1, 2, 3]
        inner = dataset.createGroup("inner").createGroup("most")
        inner.createDimension("y", 2)
        inner.createVariable("deep", "f8", ("y",), fill_value=-1.0)[:] = [0.5, -1.0]
        inner.title = "deep"
        dataset.createGroup("empty")
    store = CASStore(Repository.memory())
    import_netcdf(file, store.session)  # type: ignore[arg-type]
    reading = store.with_read_only(True)
    for group in ("", "inner/most", "empty"):
        assert_equal(file, reading, group=group)


def test_shapes_without_values(tmp_path: Path) -> None:
    file = tmp_path / "empty.nc"
    with netCDF4.Dataset(file, "w") as dataset:
        dataset.createDimension("none", None)
        dataset.createDimension("some", 2)
        dataset.createVariable("x", "i2", ("none", "some"))
        dataset.createVariable("scalar", "i2", ())[:] = 7
    store = CASStore(Repository.memory())
    import_netcdf(file, store.session)  # type: ignore[arg-type]
    assert_equal(file, store.with_read_only(True))


def test_again_and_over_something_else(tmp_path: Path) -> None:
    one, other = tmp_path / "one.nc", tmp_path / "other.nc"
    xr.Dataset({"x": ("a", np.arange(4))}).to_netcdf(one, engine="netcdf4")
    xr.Dataset({"y": ("a", np.arange(2))}).to_netcdf(other, engine="netcdf4")
    session = Repository.memory().session()
    import_netcdf(one, session, path="p")
    root = session.root
    import_netcdf(one, session, path="p")
    assert session.root == root
    with pytest.raises(InvalidArgumentError, match=r"p holds 'p/x/.*replace"):
        import_netcdf(other, session, path="p")
    assert session.flush() == root
    import_netcdf(other, session, path="p", replace=True)
    assert {key.split("/")[1] for key in session.mapping.list_keys("p/")} == {"y", "zarr.json"}


def test_no_scaling_no_mask(tmp_path: Path) -> None:
    file = tmp_path / "packed.nc"
    with netCDF4.Dataset(file, "w") as dataset:
        dataset.createDimension("x", 4)
        packed = dataset.createVariable("packed", "i2", ("x",), fill_value=-99)
        packed.set_auto_maskandscale(False)
        packed.scale_factor, packed.add_offset = 0.1, 5.0
        packed[:] = [1, 2, -99, 3]
    store = CASStore(Repository.memory())
    import_netcdf(file, store.session)  # type: ignore[arg-type]
    with xr.open_zarr(store.with_read_only(True), decode_cf=False, chunks=None) as found:
        assert found.packed.dtype == np.int16
        assert_array_equal(found.packed.values, [1, 2, -99, 3])
    assert_equal(file, store.with_read_only(True))


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    session = Repository.memory().session()
    sample = SAMPLES / "E1_north_america.nc"
    with pytest.raises(NotFoundError, match="does not exist"):
        import_netcdf(tmp_path / "nothing.nc", session)
    (tmp_path / "text.nc").write_text("no netCDF")
    with pytest.raises(InvalidArgumentError, match="cannot be read as netCDF"):
        import_netcdf(tmp_path / "text.nc", session)
    with pytest.raises(InvalidArgumentError, match=r"no dimension 'tim'.*there are: .*time"):
        import_netcdf(sample, session, chunks={"tim": 10})
    with pytest.raises(InvalidArgumentError, match="makes no sense"):
        import_netcdf(sample, session, chunks={"time": 0})
    with pytest.raises(InvalidKeyError):
        import_netcdf(sample, session, path="a/../b")
    with pytest.raises(InvalidArgumentError, match="codec 'blosc' is not known"):
        import_netcdf(sample, session, codec="blosc")
    assert not list(session.mapping)


def test_codecs() -> None:
    assert [parse_codec(text).level for text in ("zstd", "zstd:22", "none")] == [3, 22, None]


@pytest.mark.parametrize("text", ["zstd:0", "zstd:23", "zstd:x", "none:1", "", "gzip"])
def test_codecs_that_are_not_known(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_codec(text)
