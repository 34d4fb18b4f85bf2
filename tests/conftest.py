"""Shared fixtures: golden data of the published implementation, and relative error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the published implementation's outputs; see its README."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_json(golden: Path) -> Callable[[str], Any]:
    return lambda name: json.loads((golden / name).read_text())


@pytest.fixture(scope="session")
def relative_l2() -> Callable[[Any, Any], float]:
    """|a - b| / |b| in float64, of NumPy arrays or torch tensors."""

    def measure(a: Any, b: Any) -> float:
        a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        assert a.shape == b.shape, f"shapes differ: {a.shape} and {b.shape}"
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    return measure
