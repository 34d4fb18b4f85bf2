"""Shared fixtures: golden data of the published implementation, and relative error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import cli
from consisti2v_rt.runtime.bundle.bundle import hash_files
from consisti2v_rt.runtime.session import THREADS_VARIABLE
from consisti2v_rt.tests.made_once import made_once

DATA = Path(__file__).parent / "data"
ASSETS = Path(cli.__file__).parent / "assets"
GOLDEN = DATA / "golden"
DYNAMIC_BUNDLE = "DYNAMIC_BUNDLE"
"""Variable with the folder of the fixture `dynamic_bundle`, where a process that started this one made it."""


def pytest_configure() -> None:
    """Processes that run tests beside each other take a processor thread each."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for name in (THREADS_VARIABLE, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")


MADE_ONCE = {"tiny_bundle", "dynamic_bundle", "fp16_demo", "built_tiny_bundle", "fp16_bundle"}
"""Fixtures of bundles that one process makes for all."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is rare is slow as well, and so is what needs a bundle that takes half a minute to make."""
    for item in items:
        if item.get_closest_marker("rare") or not MADE_ONCE.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


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


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``random_model("tiny")``, 64 high and 48 wide, two rows: for tests that need its torch twin."""
    pytest.importorskip("torch")
    from consisti2v_rt.export.bundle_writer import write_bundle
    from consisti2v_rt.export.random_model import random_model

    def make(folder: Path) -> None:
        write_bundle(random_model("tiny"), folder, height=64, width=48, guidance="text")

    return made_once(tmp_path_factory, "tiny", make)


@pytest.fixture(scope="session", autouse=True)
def signals_as_on_a_terminal() -> None:
    """Commands that tests start inherit what is ignored: with ``nohup`` or in the background that is SIGHUP, SIGINT."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def dynamic_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``random_model("tiny")`` with open batch and size, 64x64 by default, and for wide photos 96x64."""
    if DYNAMIC_BUNDLE in os.environ:  # made by the process that started this one
        return Path(os.environ[DYNAMIC_BUNDLE])
    pytest.importorskip("torch")
    from consisti2v_rt.export.bundle_writer import write_bundle
    from consisti2v_rt.export.random_model import random_model

    def make(folder: Path) -> None:
        write_bundle(random_model("tiny"), folder, sizes=((64, 64), (64, 96)))

    return made_once(tmp_path_factory, "dynamic", make)


@dataclass(frozen=True)
class Outcome:
    """What a command line left: exit code and everything it wrote."""

    code: int
    stdout: str
    stderr: str

    def refusal(self) -> str:
        """The sentence of a refusal, checked to be all there is: one line, exit code 2, no traceback."""
        assert "Traceback" not in self.stderr + self.stdout, self.stderr
        lines = [line for line in self.stderr.splitlines() if not line.startswith("note:")]
        assert len(lines) == 1 and lines[0].startswith("error: "), self
        assert lines[0].endswith(".") and self.code == 2, self
        return lines[0].removeprefix("error: ")


@pytest.fixture
def consisti2v(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line inside this process, as the command ``consisti2v`` calls it."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["consisti2v", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code
        assert code is None or isinstance(code, int)
        return Outcome(code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def consisti2v_process(tmp_path: Path) -> Callable[..., Outcome]:
    """The command line as its own process, started outside the checkout."""

    def run(*arguments: str | bytes | Path, **environment: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "consisti2v_rt", *arguments],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            timeout=120,
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """The bundle that travels with the package; tests never write to it."""
    return ASSETS / "demo_bundle"


@pytest.fixture(scope="session")
def fp16_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the package with all stages in fp16; written only if every stage is within 5e-3."""
    pytest.importorskip("onnx")
    from consisti2v_rt.export.precision.variant import write_variant

    def make(folder: Path) -> None:
        write_variant(Path(shutil.copytree(ASSETS / "demo_bundle", folder)), "fp16")

    return made_once(tmp_path_factory, "demo-fp16", make)


@pytest.fixture
def change_weight() -> Callable[[Path, str, str, float], None]:
    """Multiply one weight of a stage of a bundle, the manifest's hashes with it."""
    onnx = pytest.importorskip("onnx")
    from onnx import numpy_helper

    def change(bundle: Path, stage: str, name: str, factor: float) -> None:
        path = bundle / stage / f"{stage}.onnx"
        model = onnx.load(str(path))
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, name))
                break
        else:
            raise KeyError(name)
        data = path.with_name(path.name + ".data")
        data.unlink()
        onnx.save_model(model, str(path), save_as_external_data=True, location=data.name, size_threshold=1024)
        manifest: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())
        for file, record in hash_files(bundle, [f"{stage}/{stage}.onnx", f"{stage}/{stage}.onnx.data"]).items():
            manifest["files"][file] = {"sha256": record.sha256, "bytes": record.bytes}
        (bundle / "bundle.json").write_text(json.dumps(manifest, indent=2) + "\n")

    return change


@pytest.fixture(scope="session")
def photo() -> Path:
    return ASSETS / "example.jpg"


def file_listing(folder: Path) -> dict[str, int]:
    """Every file and folder below `folder`, with its size, to see what a command left behind."""
    return {
        path.relative_to(folder).as_posix(): path.lstat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
    }


@pytest.fixture
def listing() -> Callable[[Path], dict[str, int]]:
    return file_listing
