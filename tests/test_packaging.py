"""The wheel holds the whole package, nothing else, and works without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import consisti2v_rt

ROOT = Path(consisti2v_rt.__file__).parent
PACKAGE = "consisti2v_rt"
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "data")

IMPORT_ALL = """
import importlib, pathlib, sys
import consisti2v_rt

root = pathlib.Path({unpacked!r})
assert pathlib.Path(consisti2v_rt.__file__) == root / "consisti2v_rt" / "__init__.py", consisti2v_rt.__file__
for name in {modules!r}:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(root), module.__file__
"""


def source_folders(folder: Path = ROOT) -> Iterator[Path]:
    """The repository's folders that hold modules, judged by their names alone: no tests, nothing hidden or built."""
    if any(folder.glob("*.py")):
        yield folder
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not inner.name.startswith(".") and inner.name not in ("tests", "build", "dist", "__pycache__"):
            yield from source_folders(inner)


def modules() -> list[Path]:
    return [file for folder in source_folders() for file in sorted(folder.glob("*.py"))]


def in_wheel(path: Path) -> str:
    return f"{PACKAGE}/{path.relative_to(ROOT).as_posix()}"


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as from a fresh clone: an old build folder would lend it files that are gone."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    assert (folder / "source" / "tests" / "test_packaging.py").is_file()
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_unpacked(unpacked: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python that finds the unpacked wheel before the installed checkout."""
    environment = os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_pyproject_lists_every_package():
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join([PACKAGE, *folder.relative_to(ROOT).parts]) for folder in source_folders()}
    assert len(settings["packages"]) == len(set(settings["packages"]))
    assert set(settings["packages"]) == found
    assert settings["package-dir"] == {PACKAGE: "."}


def test_every_folder_with_modules_is_a_package():
    assert [folder for folder in source_folders() if not (folder / "__init__.py").is_file()] == []


def test_every_module_is_in_the_wheel(names):
    expected = {in_wheel(path) for path in modules()}
    assert len(expected) > 50 and f"{PACKAGE}/runtime/pipeline.py" in expected
    assert {name for name in names if name.endswith(".py")} == expected


def test_every_data_file_is_in_the_wheel(names):
    assets = [path for path in (ROOT / "assets").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    vocabulary = list((ROOT / "export" / "vocabulary").glob("*.gz"))
    kernels = list((ROOT / "kernels" / "cuda").glob("*.cu*"))
    assert len(assets) > 10 and vocabulary and len(kernels) > 5
    for path in [*assets, *vocabulary, *kernels, ROOT / "py.typed"]:
        assert in_wheel(path) in names
    for name in ("assets/demo_bundle/bundle.json", "assets/demo_bundle/unet/unet.onnx.data", "assets/example.jpg"):
        assert f"{PACKAGE}/{name}" in names


def test_nothing_else_is_in_the_wheel(names):
    information = f"{PACKAGE}-{consisti2v_rt.__version__}.dist-info/"
    folders = {f"{PACKAGE}/{folder.relative_to(ROOT).as_posix()}/".replace("/./", "/") for folder in source_folders()}
    for name in names:
        in_package = f"{name.rpartition('/')[0]}/" in folders or name.startswith(f"{PACKAGE}/assets/")
        assert in_package or name.startswith(information), name
    at_root = {name for name in names if name.count("/") == 1 and name.startswith(f"{PACKAGE}/")}
    assert at_root == {in_wheel(path) for path in [*ROOT.glob("*.py"), ROOT / "py.typed"]}
    assert not [name for name in names if "test" in name.rpartition("/")[2] and name.endswith(".py")]


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        information = f"{PACKAGE}-{consisti2v_rt.__version__}.dist-info"
        metadata = archive.read(f"{information}/METADATA").decode()
        assert "consisti2v = consisti2v_rt.entry:main" in archive.read(f"{information}/entry_points.txt").decode()
        assert f"{information}/licenses/LICENSE" in archive.namelist()
    requirements = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    plain = {line.split()[1].split(">")[0] for line in requirements if "extra ==" not in line}
    assert plain == {"numpy", "onnxruntime", "tokenizers", "pillow", "av", "typer", "rich", "platformdirs"}
    assert f"Version: {consisti2v_rt.__version__}\n" in metadata


def test_every_module_imports_outside_the_checkout(unpacked, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    names = [module_name(path) for path in modules() if path.name != "__main__.py"]
    script = IMPORT_ALL.format(unpacked=str(unpacked), modules=names)
    done = run_unpacked(unpacked, "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_unpacked_wheel_makes_a_video(unpacked, tmp_path):
    done = run_unpacked(unpacked, "-m", PACKAGE, "demo", "--steps", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.gif", "demo.mp4"]
    assert not list(unpacked.rglob("*.mp4"))
