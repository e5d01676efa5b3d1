"""Hypothesis profiles: MVSPEC_PROFILE names one; where CI is set it is ci, otherwise dev."""

from __future__ import annotations

import os

# Before any test lets the standard library's distutils in: setuptools, which torch's compiler
# imports, asserts that its own came first.
import setuptools  # noqa: F401
from hypothesis import HealthCheck, settings

# Documents of depth 4 are slow to draw on a loaded machine; that is no fault of a test.
_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)

settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=_SLOW)
settings.register_profile(
    "ci", max_examples=150, deadline=None, derandomize=True, suppress_health_check=_SLOW
)
settings.register_profile("nightly", max_examples=5000, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("MVSPEC_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
