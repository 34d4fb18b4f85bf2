"""What ``build`` shows while it works: a narrow terminal, the runs of a check."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from consisti2v_rt.export.engines import bundle_engines
from consisti2v_rt.export.events import Events
from consisti2v_rt.runtime.commands.progress import leading_columns

pytest.importorskip("onnx")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_the_elapsed_time_is_never_cut(width: int) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=width, force_terminal=True, color_system=None)
    progress = Progress(*leading_columns(console), MofNCompleteColumn(), console=console, auto_refresh=False)
    task = progress.add_task("fp16 graph of vae_decoder: run 3 of 18", completed=2, total=18)
    progress.tasks[task].start_time = progress.get_time() - 83
    console.print(progress.get_renderable())
    (line,) = shown.getvalue().splitlines()
    assert line.startswith("0:01:23") and len(line) <= width
    assert width < 60 or "run 3 of 18" in line


def test_the_runs_of_a_check_are_counted(tiny_bundle: Path, tmp_path: Path) -> None:
    from consisti2v_rt.export.precision.variant import write_variant

    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    seen: list[Any] = []
    write_variant(bundle, "fp16", ["conditioning"], events=Events(progress=lambda *at: seen.append(at)))
    assert seen == [(f"run {number} of 7", number - 1, 7) for number in range(1, 8)], "and one with float16 sums"


@pytest.mark.slow
def test_a_build_tells_of_them(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(bundle_engines, "write_cubins", lambda *arguments: ())
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    seen: list[Any] = []
    events = Events(progress=lambda *at: seen.append(at))
    bundle_engines.build_engines(bundle, "sm89", stages=["conditioning"], events=events)
    runs = [at for at in seen if at[0].startswith("run ")]
    assert runs == [(f"run {number} of 7", number - 1, 7) for number in range(1, 8)] and len(seen) > 6
