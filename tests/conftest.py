"""What every test shares: the profiles of Hypothesis and the fixtures by others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Return the folder of fixtures by others; skip where it is absent.

    `CAS_ZARR_CONFORMANCE` names it; without that it is looked for beside the project.
    """
    project = Path(__file__).resolve().parent.parent
    default = project.parent / "shared" / "conformance"
    folder = Path(os.environ.get("CAS_ZARR_CONFORMANCE", default))
    if not folder.is_dir():
        pytest.skip(f"no conformance fixtures in {folder}; set CAS_ZARR_CONFORMANCE")
    return folder
