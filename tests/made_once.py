"""Folders that are costly to make, made by one of the processes that run tests beside each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from consisti2v_rt.runtime.files.file_lock import locked


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one process makes and all processes of a run read; no test changes it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    done = folder.with_suffix(".done")
    with locked(folder.with_suffix(".lock")):
        if not done.exists():
            make(folder)
            done.touch()
    return folder
