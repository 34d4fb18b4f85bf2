"""``doctor``: verdict first, one line an extra, and no traceback whatever is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import consisti2v_rt
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.commands import packages
from consisti2v_rt.runtime.commands.packages import PURPOSES, parts

ROOT = Path(consisti2v_rt.__file__).parent


def test_the_verdict_stands_first_and_an_extra_takes_one_line(consisti2v: Callable[..., Any]) -> None:
    outcome = consisti2v("doctor")
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("verdict: yes, it runs on the processor, by ONNX Runtime CPU in fp32")
    for extra, purpose in PURPOSES.items():
        (line,) = (line for line in lines if line.strip().startswith(f"[{extra}]"))
        assert purpose in line and re.search(r"\b(installed|incomplete)\b", line)
        assert ("pip install" in line) == (" installed " not in line or "not installed" in line), line


@pytest.mark.slow
def test_plain_where_nobody_looks(consisti2v_process: Callable[..., Any]) -> None:
    """ASCII alone, no escapes, and no line broken, in a pipe and in a dumb terminal."""
    for command in (["doctor"], ["inspect", "demo"], ["inspect"]):
        outcome = consisti2v_process(*command, TERM="dumb")
        assert outcome.code == 0 and outcome.stdout.isascii() and "\x1b" not in outcome.stdout
    row = next(line for line in consisti2v_process("doctor").stdout.splitlines() if "ONNX Runtime CUDA" in line)
    assert row.split()[3:5] == ["cuda", "no"] and "onnxruntime" in row


def test_every_extra_has_a_purpose() -> None:
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(PURPOSES) == set(project["optional-dependencies"]) - {"dev"}


def test_versions_that_do_not_fit_and_damaged_metadata(
    monkeypatch: pytest.MonkeyPatch, consisti2v: Callable[..., Any]
) -> None:
    lines = [
        "numpy>=1.26",
        "av>=13",
        "rich>=13",
        'openvino>=2025.4; extra == "openvino"',
        'torch>=2; extra == "export"',
    ]
    held: dict[str, Any] = {"numpy": "1.20", "av": None, "rich": "15", "openvino": "not a version", "torch": "2.13.0"}

    def version(name: str) -> Any:
        if name not in held:
            raise metadata.PackageNotFoundError(name)
        return held[name]

    monkeypatch.setattr(packages.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(packages.metadata, "version", version)
    runtime = parts()[""]
    assert runtime.faults == ("numpy 1.20 is installed, >=1.26 is needed", "lacks av") and runtime.state == "incomplete"
    assert parts()["export"].state == "installed"
    outcome = consisti2v("doctor")
    assert outcome.code == 0
    assert "the installation is incomplete (numpy 1.20 is installed, >=1.26 is needed; lacks av): pip" in outcome.stdout


def test_without_metadata_the_source_tree_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tomllib", reason="part of Python from 3.11 on")

    def none(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "requires", none)
    assert "platformdirs" in parts()[""].found and "onnxruntime" in parts()[""].found


def test_a_backend_whose_package_is_damaged_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, consisti2v: Callable[..., Any]
) -> None:
    def damaged() -> Any:
        raise AttributeError("module 'openvino' has no attribute 'Core'\nand more")

    changed = [
        backends.Backend(**{**vars(backend), "probe": damaged}) if backend.name == "openvino" else backend
        for backend in backends.BACKENDS
    ]
    monkeypatch.setattr(backends, "BACKENDS", tuple(changed))
    outcome = consisti2v("doctor")
    assert outcome.code == 0 and outcome.stdout.startswith("verdict: yes")
    assert "it cannot be imported (AttributeError: module 'openvino' has no attribute 'Core')" in outcome.stdout
    refused = consisti2v("doctor", "--device", "openvino")
    assert refused.stdout.startswith("verdict: no, nothing can run on device openvino")


BROKEN = "raise {error}('this package is broken')\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "error"),
    [("av", "ImportError"), ("PIL", "RuntimeError"), ("numpy", "ImportError"), ("onnxruntime", "AttributeError")],
)
def test_a_damaged_package_of_the_runtime(package: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{package}.py").write_text(BROKEN.format(error=error))
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'broken')!r}); import runpy; "
    code += "sys.argv = ['consisti2v', *sys.argv[1:]]; runpy.run_module('consisti2v_rt', run_name='__main__')"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)

    done = run("doctor")
    assert "Traceback" not in done.stderr, done.stderr
    told = done.stdout + done.stderr
    assert ("this package is broken" in told and "pip install -e" in told) or "ONNX Runtime CPU" in done.stdout
    if package in ("av", "PIL"):
        assert done.returncode == 0 and "verdict: " in done.stdout, told
    other = run("inspect", "demo")
    assert "Traceback" not in other.stderr and other.returncode in (0, 2)
