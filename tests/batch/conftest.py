"""A listing of small photos for the smallest bundle here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Listing = Callable[..., Path]
BUNDLE = Path(__file__).parents[1] / "data" / "untrained_bundle"


@pytest.fixture
def bundle() -> Path:
    return BUNDLE


@pytest.fixture
def make_listing(tmp_path: Path) -> Listing:
    """Writes photos 0.png, 1.png ... and a JSONL listing of them; each row's options beside it."""

    def make(*options: dict[str, Any]) -> Path:
        noise = np.random.default_rng(0)
        lines = []
        for number, more in enumerate(options):
            Image.fromarray(noise.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
            lines.append({"image": f"{number}.png", "prompt": "a cat", "steps": 2} | more)
        listing = tmp_path / "rows.jsonl"
        listing.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return listing

    return make


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
