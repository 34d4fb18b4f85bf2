"""The wheel holds the whole package, nothing else, and works without the checkout; type checkers see every install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import consisti2v_rt

pytestmark = pytest.mark.rare

ROOT = Path(consisti2v_rt.__file__).parent
PACKAGE = "consisti2v_rt"
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "src", "*.egg-info", "data")
NOT_IN_PACKAGE = ("tests", "models", "docs", "build", "dist", "src", "__pycache__")

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
    """Folders of installed modules, judged by their names alone: no tests or models, nothing hidden or built."""
    if any(folder.glob("*.py")):
        yield folder
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not inner.name.startswith(".") and inner.name not in NOT_IN_PACKAGE:
            yield from source_folders(inner)


def modules() -> list[Path]:
    return [file for folder in source_folders() for file in sorted(folder.glob("*.py")) if file != ROOT / "setup.py"]


def in_wheel(path: Path) -> str:
    return f"{PACKAGE}/{path.relative_to(ROOT).as_posix()}"


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, as a fresh clone in a folder of another name: an old build folder would lend files that are gone."""
    folder = tmp_path_factory.mktemp("clone") / "any name"
    shutil.copytree(ROOT, folder, ignore=NOT_SOURCE)
    assert (folder / "tests" / "test_packaging.py").is_file() and not (folder / "src").exists()
    return folder


def python(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distribution(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source distribution and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("distribution")
    python("-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


@pytest.fixture(scope="module")
def wheel(distribution: Path) -> Path:
    (built,) = distribution.glob("*.whl")
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
    page = list((ROOT / "serve" / "page").iterdir())
    assert {"index.html", "app.js", "style.css"} < {path.name for path in page}
    for path in [*assets, *vocabulary, *kernels, *page, ROOT / "py.typed"]:
        assert in_wheel(path) in names
    for name in ("assets/demo_bundle/bundle.json", "assets/demo_bundle/unet/unet.onnx.data", "assets/example.jpg"):
        assert f"{PACKAGE}/{name}" in names


def test_nothing_else_is_in_the_wheel(names):
    information = f"{PACKAGE}-{consisti2v_rt.__version__}.dist-info/"
    folders = {f"{PACKAGE}/{folder.relative_to(ROOT).as_posix()}/".replace("/./", "/") for folder in source_folders()}
    data = (f"{PACKAGE}/assets/", f"{PACKAGE}/serve/page/")
    for name in names:
        in_package = f"{name.rpartition('/')[0]}/" in folders or name.startswith(data)
        assert in_package or name.startswith(information), name
    at_root = {name for name in names if name.count("/") == 1 and name.startswith(f"{PACKAGE}/")}
    assert at_root == {in_wheel(path) for path in [*ROOT.glob("*.py"), ROOT / "py.typed"] if path.name != "setup.py"}
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
    # Nodes are imported by ComfyUI alone, which is no package: tests/comfyui imports them beside a stand-in.
    names = [module_name(path) for path in modules() if path.name != "__main__.py" and path.parent.name != "comfyui"]
    script = IMPORT_ALL.format(unpacked=str(unpacked), modules=names)
    done = run_unpacked(unpacked, "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_unpacked_wheel_makes_a_video(unpacked, tmp_path):
    done = run_unpacked(unpacked, "-m", PACKAGE, "demo", "--steps", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.gif", "demo.mp4"]
    assert not list(unpacked.rglob("*.mp4"))


def test_the_source_distribution_holds_each_file_once(distribution):
    (archive,) = distribution.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = [name.partition("/")[2] for name in opened.getnames()]
    assert {f"src/{in_wheel(path)}" for path in modules()} < set(inside)
    assert "setup.py" in inside and not [name for name in inside if name.count("src/") > 1]


def test_the_link_leads_to_the_checkout(source, distribution):
    """Relative, so that a checkout may move; git ignores its folder."""
    link = source / "src" / PACKAGE
    assert link.resolve() == source.resolve()
    assert os.name == "nt" or link.readlink() == Path("..")
    assert "/src/" in (ROOT / ".gitignore").read_text().split()


# -- what type checkers and editors see of an install ------------------------------------------------------------------

USER_PROGRAM = """
from pathlib import Path

from consisti2v_rt import GeneratedVideos, GenerationSettings, ImageToVideo, StepProgress, UserError


def progress(state: StepProgress) -> None:
    print(state.step + 1, state.steps)


def animate(bundle: Path, photo: Path) -> GeneratedVideos:
    settings = GenerationSettings(num_inference_steps=8)
    return ImageToVideo.from_bundle(bundle)(photo, "a cat", settings=settings, callback=progress, seed=7)


try:
    reveal_type(animate(Path("bundle"), Path("photo.jpg")).save("cat.mp4"))
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(request: pytest.FixtureRequest, source: Path, wheel: Path, tmp_path_factory) -> Path:
    """A fresh environment with this package installed; the dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    venv.create(folder, with_pip=False)
    what = [wheel] if request.param == "wheel" else ["--no-build-isolation", "--editable", source]
    options = ["--quiet", "--no-deps", "--ignore-installed", "--no-warn-script-location", "--prefix", folder]
    python("-m", "pip", "install", *options, *what)
    (site,) = {path.parent for path in folder.rglob("consisti2v_rt-*.dist-info")}
    (site / "dependencies.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    return folder


def interpreter(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def checked(environment: Path, folder: Path, program: str, *command: str | Path) -> tuple[int, str]:
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", *command, "program.py"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def test_mypy_sees_the_install(environment, tmp_path, tmp_path_factory):
    # One cache for both installs: what takes long is NumPy.
    cache = tmp_path_factory.getbasetemp() / "mypy"
    command = ["mypy", "--strict", "--cache-dir", cache, "--python-executable", interpreter(environment)]
    code, said = checked(environment, tmp_path, USER_PROGRAM, *command)
    assert code == 0 and 'Revealed type is "list[pathlib.Path]"' in said.replace("builtins.", ""), said
    for wrong in ("seed='x'", "num_frames='x'", "sed=7"):
        code, said = checked(environment, tmp_path, USER_PROGRAM.replace("seed=7", wrong), *command)
        assert code == 1 and wrong.partition("=")[0] in said, said


def test_pyright_sees_the_install(environment, tmp_path):
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    command = ["basedpyright", "--pythonpath", interpreter(environment), "--project", "pyrightconfig.json"]
    code, said = checked(environment, tmp_path, USER_PROGRAM, *command)
    assert code == 0 and "list[Path]" in said, said
