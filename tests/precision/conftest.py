"""Copies of the demo bundle that may be written to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from consisti2v_rt.tests.made_once import made_once


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle: the tiny model, 128 by 128, two rows."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def fp16_bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle with all stages in fp16; not to be changed."""
    from consisti2v_rt.export.precision.variant import write_variant

    def make(folder: Path) -> None:
        write_variant(Path(shutil.copytree(demo_bundle, folder)), "fp16")

    return made_once(tmp_path_factory, "untrained-fp16", make)


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """In this folder: the demo bundle's stages with random weights at 128x128, so that rounding is not all zeros. The
    demo model itself has a file of its own.
    """
    return Path(__file__).parents[1] / "data" / "untrained_bundle"
