"""The page on GPUs says what is so: its Python runs, with a stand-in for a device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu.fakecupy import DeviceArray, Fake, on_device
from test_docs import PROJECT, blocks, run

pytest.importorskip("zarr.codecs.numcodecs")


def standard_normal(shape: Any, dtype: str) -> DeviceArray:
    """Return an array of that type, an eighth of that size each way."""
    smaller = tuple(-(-side // 8) for side in shape)
    return on_device(np.random.default_rng(0).standard_normal(smaller, dtype))


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_the_python_of_the_page_runs(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random = SimpleNamespace(standard_normal=standard_normal)
    monkeypatch.setattr(fake.cupy, "random", random, raising=False)
    page = PROJECT / "docs" / "gpu.md"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        run(page, line, code.replace("512, 512", "64, 64"), namespace)
    assert isinstance(namespace["back"], DeviceArray)
    np.testing.assert_array_equal(namespace["back"].get(), namespace["field"].get())
    assert namespace["array"].metadata.to_dict()["codecs"][-1]["name"] == "cas_zarr.bitcomp"
