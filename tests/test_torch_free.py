"""The runtime runs where torch and the rest of the export side are not installed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import consisti2v_rt

ROOT = Path(consisti2v_rt.__file__).parent
EXPORT_ONLY = ("torch", "onnx", "onnxscript", "diffusers", "transformers", "safetensors", "huggingface_hub")

# Runs before anything else in a fresh interpreter: the named modules cannot be imported.
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""

GENERATE = """
import numpy as np
from consisti2v_rt import ImageToVideo

animate = ImageToVideo.from_bundle({bundle!r})
videos = animate(
    {photo!r},
    "a cat",
    negative_prompt="blurry",
    num_inference_steps=2,
    guidance_scale_txt=7.5,
    use_frameinit=True,
    seed=0,
)
model = animate.bundle.manifest.model
assert videos.frames.shape == (1, model.frames, model.height, model.width, 3), videos.frames.shape
assert videos.frames.dtype == np.uint8 and videos.frames.std() > 1 and np.isfinite(videos.latents).all()
for suffix in ("mp4", "gif", "webp", "png"):
    for file in videos.save("out." + suffix):
        print(file)
loaded = [name for name in sys.modules if name.split(".")[0] in {blocked!r} or name.startswith("consisti2v_rt.export")]
assert not loaded, loaded
"""

COMMAND = """
from consisti2v_rt.cli import main

sys.argv = ["consisti2v", *{arguments!r}]
main()
"""


def run_blocked(script: str, blocked: tuple[str, ...], cwd: Path, **values: object) -> subprocess.CompletedProcess[str]:
    source = (BLOCK + script).format(blocked=blocked, **values)
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", [*EXPORT_ONLY, "consisti2v_rt.export.unet"])
def test_the_block_blocks(tmp_path, name):
    done = run_blocked("import {name}", (*EXPORT_ONLY, "consisti2v_rt.export"), tmp_path, name=name)
    assert done.returncode == 1 and "is blocked" in done.stderr


@pytest.mark.slow
def test_a_whole_generation(tmp_path, demo_bundle, photo):
    blocked = (*EXPORT_ONLY, "consisti2v_rt.export")
    done = run_blocked(GENERATE, blocked, tmp_path, bundle=str(demo_bundle), photo=str(photo))
    assert done.returncode == 0, done.stderr
    written = done.stdout.split()
    assert [Path(file).suffix for file in written[:4]] == [".mp4", ".gif", ".webp", ".png"]
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())
    assert all((tmp_path / file).stat().st_size > 100 for file in written)


@pytest.mark.slow
def test_the_command_line(tmp_path):
    """With the plain install: `demo` works, `export` names what it needs."""
    done = run_blocked(COMMAND, EXPORT_ONLY, tmp_path, arguments=["demo", "--steps", "1"])
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.gif", "demo.mp4"]

    arguments = ["export", "--random-weights", "tiny", "-o", "bundle"]
    done = run_blocked(COMMAND, EXPORT_ONLY, tmp_path, arguments=arguments)
    assert done.returncode == 2 and "pip install -e " in done.stderr and '[export]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "bundle").exists()


def imported_names(file: Path) -> set[str]:
    """Absolute names of what a file of the package imports, wherever in the file."""
    package = ("consisti2v_rt", *file.relative_to(ROOT).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def forbidden(names: set[str]) -> list[str]:
    blocked = (*EXPORT_ONLY, "consisti2v_rt.export")
    return sorted(n for n in names if any(n == name or n.startswith(f"{name}.") for name in blocked))


@pytest.mark.parametrize("folder", ["runtime", "kernels"])
def test_no_file_imports_the_export_side(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 5
    assert {str(f): forbidden(imported_names(f)) for f in files if forbidden(imported_names(f))} == {}


def test_the_static_check_sees_imports():
    assert "torch" in forbidden(imported_names(ROOT / "export" / "loading.py"))
    assert sorted(forbidden(imported_names(ROOT / "cli.py"))) == [
        "consisti2v_rt.export.command.export",
        "consisti2v_rt.export.engines.command.build",
        "consisti2v_rt.export.lora.command.lora",
    ]
