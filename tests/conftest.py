"""Hypothesis profiles and the marker `nightly`; MVSPEC_PROFILE names the profile.

Where it is not set, the profile is ci where CI is set, otherwise dev. Tests with the marker run
in the profile nightly only.
"""

from __future__ import annotations

import os

# The models of tests are so small that a second thread of a process costs more than it brings:
# two of them take ten times as long where other processes want the cores too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before any test lets the standard library's distutils in: setuptools, which torch's compiler
# imports, asserts that its own came first.
import pytest
import setuptools  # noqa: F401
from hypothesis import HealthCheck, settings

# Documents of depth 4 are slow to draw on a loaded machine; that is no fault of a test.
_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)

settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=_SLOW)
settings.register_profile(
    "ci", max_examples=150, deadline=None, derandomize=True, suppress_health_check=_SLOW
)
settings.register_profile("nightly", max_examples=5000, deadline=None, suppress_health_check=_SLOW)
PROFILE = os.environ.get("MVSPEC_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what takes long, but for the nightly profile."""
    if PROFILE == "nightly":
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="it takes long: MVSPEC_PROFILE=nightly"))
