"""Child processes of this package: started where no file of the user's folder can take a module's place."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TypedDict


class Place(TypedDict):
    """Of ``subprocess.Popen``, for ``python -m``."""

    cwd: str
    env: dict[str, str]


def neutral_place() -> Place:
    """Working directory and environment for ``python -m`` with a module of this package.

    ``-m`` puts the working directory before the standard library on ``sys.path``, so a ``random.py`` there would be
    imported. The child therefore runs in the root folder, and ``PYTHONSAFEPATH`` (Python 3.11 and later) keeps its
    working directory off ``sys.path``. Pass it absolute paths only; entries of PYTHONPATH are made absolute here.
    """
    entries = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if entries:
        environment["PYTHONPATH"] = os.pathsep.join(entries)
    return {"cwd": Path(sys.executable).anchor, "env": environment | {"PYTHONSAFEPATH": "1"}}


def answer_in(line: str) -> dict[str, Any] | None:
    """The JSON object that a child wrote as a line; None where the line is something else."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
