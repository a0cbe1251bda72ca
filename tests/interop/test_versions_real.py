"""Versions of real climate data, checked against the netCDF files that they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("netCDF4")
pytest.importorskip("zarr", minversion="3.1")
iris_sample_data = pytest.importorskip("iris_sample_data")

from cas_zarr import CASStore, Repository  # noqa: E402
from cas_zarr.cid import as_cid_bytes  # noqa: E402
from cas_zarr.errors import ConflictError, VersionNotFoundError  # noqa: E402

SAMPLES = Path(iris_sample_data.path)
PAST = 140  # of 240 years: the scenarios have them in common
CHUNK = 10
MONTHS = 18
FIELD = "surface_temperature"


def _chunked(data: Any, length: int) -> dict[Any, dict[str, Any]]:
    """Return an encoding with chunks of some steps in time, and nothing added."""
    encoding = {}
    for key, variable in data.variables.items():
        own = {k: v for k, v in variable.encoding.items() if k in ("dtype", "units", "calendar")}
        own["_FillValue"] = variable.encoding.get("_FillValue")
        own["chunks"] = tuple(
            (length if variable.ndim > 2 else 12) if dim == "time" else size
            for dim, size in variable.sizes.items()
        )
        encoding[key] = own
    return encoding


# -- two scenarios as two branches ----------------------------------------------------------------


def _scenario(name: str) -> Any:
    """Return a run as it lies in the file, without the attribute that names the scenario."""
    data = xr.load_dataset(
        SAMPLES / f"{name}_north_america.nc", engine="netcdf4", decode_cf=False
    ).drop_encoding()
    assert data.air_temperature.attrs.pop("Model scenario") == name
    return data


def _open(repo: Repository, version: str) -> Any:
    store = CASStore(repo, version=version)
    return xr.open_zarr(store, decode_cf=False, mask_and_scale=False, chunks=None).load()


def _append(data: Any, store: CASStore) -> None:
    fixed = [name for name, variable in data.variables.items() if "time" not in variable.dims]
    data.drop_vars(fixed).to_zarr(store, append_dim="time", consolidated=False)


@pytest.fixture
def scenarios(tmp_path: Path) -> Repository:
    """Return a repository with the common past, from which two scenarios go apart."""
    repo = Repository.open(tmp_path / "runs.cas", create=True, author="a modeller")
    runs = {name: _scenario(name) for name in ("A1B", "E1")}
    past = runs["A1B"].isel(time=slice(0, PAST))
    xr.testing.assert_identical(past, runs["E1"].isel(time=slice(0, PAST)))
    store = CASStore(repo)
    past.to_zarr(store, encoding=_chunked(past, CHUNK), zarr_format=3, consolidated=False)
    store.commit("the past")
    for name, run in runs.items():
        repo.create_branch(name)
        store = CASStore(repo, branch=name)
        _append(run.isel(time=slice(PAST, None)), store)
        store.commit(f"scenario {name}")
    return repo


def test_each_branch_has_its_scenario_and_they_meet_in_the_past(scenarios: Repository) -> None:
    for name in ("A1B", "E1"):
        xr.testing.assert_identical(_open(scenarios, name), _scenario(name))
        xr.testing.assert_identical(
            _open(scenarios, f"{name}~1"), _scenario(name).isel(time=slice(0, PAST))
        )
    (change,) = scenarios.diff("A1B", "E1")
    assert change.path == "air_temperature"
    assert change.boxes == ((slice(PAST, 240), slice(0, 37), slice(0, 49)),)
    assert change.modified == 10


def test_a_correction_of_metadata_and_one_of_data_are_merged(scenarios: Repository) -> None:
    """Units become those of the standard on one branch, a region is corrected on the other."""
    scenarios.create_branch("metadata", "A1B")
    store = CASStore(scenarios, branch="metadata")
    import zarr

    field = zarr.open_array(store, path="air_temperature", mode="r+")
    field.attrs["units"] = "kelvin"
    field.attrs["long_name"] = "air temperature at 1.5 m"
    store.commit("say what the units are")

    store = CASStore(scenarios, branch="A1B")
    field = zarr.open_array(store, path="air_temperature", mode="r+")
    field[33:47, 5:9, 10:20] += np.float32(0.5)
    store.commit("correct a bias")

    result = scenarios.merge("metadata", into="A1B")
    assert result.kind == "merge"
    assert result.notes == ()
    expected = _scenario("A1B")
    expected.air_temperature[33:47, 5:9, 10:20] += np.float32(0.5)
    expected.air_temperature.attrs |= {"units": "kelvin", "long_name": "air temperature at 1.5 m"}
    xr.testing.assert_identical(_open(scenarios, "A1B"), expected)
    (change,) = scenarios.diff("A1B~1", "A1B")
    assert [(field.path[-1], field.before) for field in change.fields][1] == ("units", "K")
    assert change.counts == (0, 0, 0)
    (change,) = scenarios.diff("A1B^2", "A1B")
    assert change.boxes == ((slice(30, 50), slice(0, 37), slice(0, 49)),)

    # The same correction belongs into the other scenario, whose past it is too.
    scenarios.cherry_pick("A1B^1", into="E1")
    expected = _scenario("E1")
    expected.air_temperature[33:47, 5:9, 10:20] += np.float32(0.5)
    xr.testing.assert_identical(_open(scenarios, "E1"), expected)


def test_merging_scenarios_conflicts_in_the_future_and_a_mean_resolves_it(
    scenarios: Repository,
) -> None:
    before = scenarios.branches()
    with pytest.raises(ConflictError) as caught:
        scenarios.merge("E1", into="A1B")
    assert [conflict.coordinates for conflict in caught.value.conflicts] == [
        (chunk, 0, 0) for chunk in range(PAST // CHUNK, 24)
    ]
    assert caught.value.conflicts[0].key == "air_temperature/c/14/0/0"
    assert scenarios.branches() == before

    def mean(base: Any, ours: Any, theirs: Any) -> Any:
        assert np.isnan(base).all()  # there was no such chunk: the fill value
        return (ours + theirs) / 2

    result = scenarios.merge("E1", into="A1B", resolve=mean)
    assert len(result.resolved) == 10
    left, right = _scenario("A1B").air_temperature, _scenario("E1").air_temperature
    merged = _open(scenarios, "A1B").air_temperature
    np.testing.assert_array_equal(merged[:PAST], left[:PAST])
    np.testing.assert_array_equal(merged[PAST:], (left[PAST:] + right[PAST:]) / 2)
    assert scenarios.verify(data=True).ok


# -- months appended one by one -------------------------------------------------------------------


def _ostia() -> Any:
    return xr.load_dataset(SAMPLES / "ostia_monthly.nc", engine="netcdf4")


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with a commit for each month, of the time of its data."""
    place = tmp_path_factory.mktemp("months") / "sst.cas"
    repo = Repository.open(place, create=True, author="an observer")
    data = _ostia()
    encoding = _chunked(data, 1)
    for number in range(MONTHS):
        part = data.isel(time=slice(number, number + 1)).drop_encoding()
        store = CASStore(repo)
        if number == 0:
            part.to_zarr(store, encoding=encoding, zarr_format=3, consolidated=False)
        else:
            _append(part, store)
        when = data.time.values[number]
        micros = int(when.astype("datetime64[us]").astype(np.int64))
        store.commit(f"month {when.astype('datetime64[M]')}", time=micros)
    return repo


def _at(repo: Repository, version: Any) -> Any:
    store = CASStore(repo, version=version)
    return xr.open_zarr(store, consolidated=False, chunks=None).load()


def test_every_month_can_be_travelled_to(months: Repository) -> None:
    data = _ostia()
    for number in range(MONTHS):
        found = _at(months, f"main~{MONTHS - 1 - number}")
        xr.testing.assert_identical(found, data.isel(time=slice(0, number + 1)))


def test_a_date_names_what_was_known_then(months: Repository) -> None:
    data = _ostia()
    stamps = data.time.values[:MONTHS]
    for date in ("2006-04-30", "2006-12-31", "2007-02-14", "2007-02-15", "2007-03-01T00:00"):
        moment = np.datetime64(date) + np.timedelta64(0 if "T" in date else 24, "h")
        known = int((stamps < moment).sum())
        expected = data.isel(time=slice(0, known))
        xr.testing.assert_identical(_at(months, f"main@{date}"), expected)
    with pytest.raises(VersionNotFoundError, match="the history begins with commit"):
        months.resolve("main@2006-04-15")


def test_the_log_of_a_box_names_the_months_that_wrote_it(months: Repository) -> None:
    log = [entry.commit.message for entry in months.log(path=FIELD)]
    assert log == [f"month {when}" for when in _months()[::-1]]
    for first, last in ((0, 0), (4, 6), (MONTHS - 1, MONTHS - 1)):
        box = [(first, last + 1), (0, 1), (0, 1)]
        found = [entry.commit.message for entry in months.log(path=FIELD, box=box)]
        assert found == [f"month {when}" for when in _months()[first : last + 1][::-1]]
    assert [entry.commit.message for entry in months.log(path="latitude")] == ["month 2006-04"]
    since = list(months.log(since="2007-01-01", until="2007-03-31"))
    assert [entry.commit.message[-2:] for entry in since] == ["03", "02", "01"]


def _months() -> list[str]:
    return [str(when.astype("datetime64[M]")) for when in _ostia().time.values[:MONTHS]]


def test_a_diff_names_the_appended_months_as_one_box(months: Repository) -> None:
    for older, newer in ((1, 0), (5, 0), (MONTHS - 1, 3)):
        changes = {one.path: one for one in months.diff(f"main~{older}", f"main~{newer}")}
        assert changes.keys() == {
            FIELD,
            "forecast_reference_time",
            "forecast_reference_time_bnds",
            "time",
            "time_bnds",
        }
        change = changes[FIELD]
        start, stop = MONTHS - older, MONTHS - newer
        assert change.boxes == ((slice(start, stop), slice(0, 18), slice(0, 432)),)
        assert change.counts == (stop - start, 0, 0)
        assert [(one.path, one.before, one.after) for one in change.fields] == [
            (("shape",), [start, 18, 432], [stop, 18, 432])
        ]


def test_a_corrected_month_is_a_branch_and_its_undoing_a_revert(months: Repository) -> None:
    import zarr

    before = as_cid_bytes(months.resolve("main").root)
    months.create_branch("correction")
    store = CASStore(months, branch="correction")
    zarr.open_array(store, path=FIELD, mode="r+")[7] += 1
    store.commit("correct a month")
    data = _ostia().isel(time=slice(0, MONTHS))
    corrected = _at(months, "correction")
    data[FIELD][7] += 1
    xr.testing.assert_identical(corrected, data)
    (change,) = months.diff("main", "correction")
    assert change.boxes == ((slice(7, 8), slice(0, 18), slice(0, 432)),)
    result = months.revert("correction", into="correction")
    assert result.root == before
    assert months.same("main", "correction")
    months.delete_branch("correction")
    xr.testing.assert_identical(_at(months, "correction@{2}"), data)
