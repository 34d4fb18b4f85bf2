"""The builder's process: nothing of the user's folder is run, nothing that is printed is taken for an answer."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.export.engines import bundle_engines, job, process
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.engines.plan import plain_words
from consisti2v_rt.runtime.child_process import neutral_place
from consisti2v_rt.runtime.gpu.device import GpuStatus

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    monkeypatch.setattr(bundle_engines, "write_cubins", lambda *arguments: ())


def order_for(bundle: Path, plan: Path) -> dict[str, Any]:
    order = {"bundle": str(bundle), "target": "sm89", "backend": "tensorrt-rtx", "precision": "fp32"}
    return {**order, "stages": ["unet"], "dynamic": [], "stripped": False, "plan": str(plan)}


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Another script in place of the builder."""
    path = tmp_path / "stand_in.py"
    path.write_text(script)
    real = subprocess.Popen
    monkeypatch.setattr(
        process.subprocess, "Popen", lambda command, **options: real([sys.executable, str(path)], **options)
    )


def test_files_of_the_working_directory_are_not_run(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("random", "json", "numpy"):
        (here / f"{name}.py").write_text(f"open({str(here / 'was_run')!r}, 'w')\nraise SystemExit('run from here')\n")
    monkeypatch.chdir(here)
    (engine,) = build_engines(f"../{toy_bundle.name}", "sm89", precision="fp32", stages=["conditioning"])
    assert engine.stage == "conditioning" and not (here / "was_run").exists()


def test_the_path_for_packages_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Relative entries are those of the folder that they were given in; an empty one would be the child's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "found_here.py").write_text("print('found')")
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}lib")
    done = subprocess.run([sys.executable, "-m", "found_here"], capture_output=True, text=True, **neutral_place())
    assert done.stdout == "found\n"
    assert neutral_place()["env"]["PYTHONPATH"] == str(tmp_path / "lib")


@pytest.mark.parametrize("line", ["Loading plugins\\n", "[1, 2]\\n", "7\\n", "\\x1b[1m\\n"])
def test_a_line_that_is_no_answer(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, listing: Callable[[Path], Any]
) -> None:
    before = listing(toy_bundle)
    stand_in(monkeypatch, tmp_path, f"print('{line}', end='', flush=True)")
    with pytest.raises(UserError, match=r"in place of an answer while it built stage unet: .*\.$") as refused:
        build_engines(toy_bundle, "sm89", precision="fp32", stages=["unet"])
    assert str(refused.value).isprintable() and listing(toy_bundle) == before


def test_bytes_that_are_no_text(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "import os; os.write(1, b'\\xff\\xfe\\n')")
    with pytest.raises(UserError, match="in place of an answer"):
        build_engines(toy_bundle, "sm89", precision="fp32", stages=["unet"])


def test_what_a_native_library_prints_is_no_answer(toy_bundle: Path, tmp_path: Path) -> None:
    """The real worker, in which the library writes to file descriptor 1 as it is imported."""
    (tmp_path / "tensorrt_rtx.py").write_text(
        "import os\nos.write(1, b'a banner of the library\\n')\n"
        "IAttentionInputLayer = None\n"
        "class Logger: pass\n"
        "raise ImportError('a stand-in')\n"
    )
    place = neutral_place()
    order = order_for(toy_bundle, tmp_path / "x.plan")
    done = subprocess.run(
        [sys.executable, "-m", process.__name__],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        cwd=place["cwd"],
        env=place["env"] | {"PYTHONPATH": str(tmp_path)},
    )
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert "a stand-in" in answer["refused"] and "a banner of the library" in done.stderr


def test_a_full_disk_names_stage_and_bundle(tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(process, "build_plan", full)
    order = order_for(toy_bundle, tmp_path / "x.plan")
    answers = io.StringIO()
    process.main(io.StringIO(json.dumps(order)), answers)
    assert json.loads(answers.getvalue()) == {
        "refused": f"the plan of stage unet cannot be written into bundle {toy_bundle} (No space left on device): "
        "check space and permissions."
    }


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("No kernel. (See https://docs.nvidia.com/deeplearning for more.)", "No kernel. for more.)"),
        ("No kernel (https://docs.nvidia.com/deep).", "No kernel"),
        ("\x1b[31mred\x1b[0m\nmore", "[31mred [0m"),
        ("  \n", "no reason given"),
        ("x" * 400, "x" * 300),
    ],
)
def test_words_of_a_library_for_a_sentence(said: str, shown: str) -> None:
    assert plain_words(said) == shown
