"""What holds for all tests."""

from __future__ import annotations

import math

import pytest

from distcompile.predict import fit


@pytest.fixture(autouse=True)
def _no_compiler_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run what they ask for: no kernels are made beside a test that happens to take a while."""
    monkeypatch.setattr(fit, "WORTHWHILE", math.inf)
