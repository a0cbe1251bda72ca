"""anndata writes into a `CASStore` and reads back from a commit."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

anndata = pytest.importorskip("anndata")
pd = pytest.importorskip("pandas")
sparse = pytest.importorskip("scipy.sparse")
zarr = pytest.importorskip("zarr", minversion="3.1")

if tuple(map(int, version("anndata").split(".")[:2])) < (0, 13):
    pytest.skip("anndata 0.13, which needs Python 3.12, is not installed", allow_module_level=True)

from cas_zarr import CASStore  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    # What anndata hears from zarr and pandas whatever the store is.
    "ignore::zarr.errors.UnstableSpecificationWarning",
    "ignore:.*infer_string.*",
    "ignore::FutureWarning:anndata.*",
)


def _cells(kind: str) -> Any:
    random = np.random.default_rng(3)
    counts = random.poisson(0.6, (120, 40)).astype("float32")
    matrix = counts if kind == "dense" else getattr(sparse, f"{kind}_matrix")(counts)
    cells = pd.DataFrame(
        {
            "kind": pd.Categorical(random.choice(["T", "B", "NK"], 120)),
            "depth": counts.sum(axis=1),
        },
        index=[f"cell-{i}" for i in range(120)],
    )
    genes = pd.DataFrame({"length": np.arange(40)}, index=[f"gene/{i}" for i in range(40)])
    return anndata.AnnData(
        X=matrix,
        obs=cells,
        var=genes,
        obsm={"pca": random.random((120, 3))},
        layers={"log": np.log1p(counts)},
        uns={"title": "cells", "nested": {"numbers": np.arange(5)}},
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_round_trip(tmp_path: Path, kind: str, zarr_format: int) -> None:
    cells = _cells(kind)
    with CASStore(tmp_path / "cells.cas") as store:
        group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
        anndata.io.write_elem(group, "/", cells)
        store.commit("cells")
    version = CASStore(tmp_path / "cells.cas", version="main")
    back = anndata.io.read_elem(zarr.open_group(version, mode="r"))
    _assert_same(back, cells)


def test_write_zarr_and_read_zarr_take_the_store(tmp_path: Path) -> None:
    cells = _cells("csr")
    with CASStore(tmp_path / "cells.cas") as store:
        # A store that changes would carry a stale copy, so a writable one refuses to consolidate.
        cells.write_zarr(store, consolidate_metadata=False)
        _assert_same(anndata.read_zarr(store), cells)
        store.commit("cells")
    _assert_same(anndata.read_zarr(CASStore(tmp_path / "cells.cas", version="main")), cells)


def test_the_same_cells_have_the_same_root(tmp_path: Path) -> None:
    roots = set()
    for name in ("a", "b"):
        with CASStore(tmp_path / name) as store:
            group = zarr.open_group(store, mode="w", zarr_format=3)
            anndata.io.write_elem(group, "/", _cells("csr"))
            roots.add(str(store.flush()))
    assert len(roots) == 1


def _assert_same(actual: Any, expected: Any) -> None:
    def dense(matrix: Any) -> Any:
        return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)

    np.testing.assert_array_equal(dense(actual.X), dense(expected.X))
    assert sparse.issparse(actual.X) == sparse.issparse(expected.X)
    pd.testing.assert_frame_equal(actual.obs, expected.obs)
    pd.testing.assert_frame_equal(actual.var, expected.var)
    np.testing.assert_array_equal(actual.obsm["pca"], expected.obsm["pca"])
    np.testing.assert_array_equal(actual.layers["log"], expected.layers["log"])
    assert actual.uns["title"] == expected.uns["title"]
    np.testing.assert_array_equal(
        actual.uns["nested"]["numbers"], expected.uns["nested"]["numbers"]
    )
