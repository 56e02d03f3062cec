"""What holds for all tests."""

from __future__ import annotations

import math

import hypothesis
import pytest

from distcompile.predict import fit

hypothesis.settings.register_profile(
    "timeless", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)  # how busy the machine is says nothing about what is tested
hypothesis.settings.load_profile("timeless")


@pytest.fixture(autouse=True)
def _no_compiler_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run what they ask for: no kernels are made beside a test that happens to take a while."""
    monkeypatch.setattr(fit, "WORTHWHILE", math.inf)
