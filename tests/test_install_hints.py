"""Every install line in sources, docs and messages works in a clone: made by one helper, with extras that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import consisti2v_rt
from consisti2v_rt.runtime import install
from consisti2v_rt.runtime.install import install_hint

ROOT = Path(consisti2v_rt.__file__).parent
OTHER_PACKAGES = ("pip install --no-deps vbench", "pip install 'onnxruntime-gpu[cuda,cudnn]'")
"""On an index, and installed beside this package by who wants them."""


def own_files(*suffixes: str) -> list[Path]:
    hidden = (".venv", ".cache", "build", "dist", "tests")
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file()
        and path.suffix in suffixes
        and not any(part in hidden or part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


def extras() -> set[str]:
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def test_documents_install_the_clone_with_extras_that_exist() -> None:
    known, found = extras(), 0
    for path in own_files(".md"):
        for line in re.findall(r"pip install.*", path.read_text(encoding="utf-8")):
            match = re.match(r'pip install -e (?:\.(?![\w\[])|"\.\[(?P<extras>[\w,]+)\]")', line)
            assert match is not None, f"{path.name}: {line}"
            assert set((match["extras"] or "").split(",")) - {""} <= known, f"{path.name}: {line}"
            found += 1
    assert found >= 6


def test_messages_take_the_helper() -> None:
    """No source writes an install line of this package itself, and each names extras that exist."""
    known, calls = extras(), 0
    for path in own_files(".py", ".sh"):
        text = path.read_text(encoding="utf-8")
        if path.name != "install.py":
            lines = re.findall(r"pip install[^\n]*", text)
            assert all(line.startswith(OTHER_PACKAGES) for line in lines), f"{path.name}: {lines}"
        assert "consisti2v-rt[" not in text or path.name == "install.py", path.name
        for arguments in re.findall(r"install_hint\(([^)]*)\)", text):
            named = re.findall(r"[\"'](\w+)[\"']", arguments)
            assert set(named) <= known, f"{path.name}: {arguments}"
            calls += 1
    assert calls > 15


def test_the_line_works_where_it_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert install_hint() == "pip install -e ."
    assert install_hint("export") == 'pip install -e ".[export]"'
    assert install_hint("bench", "quality") == 'pip install -e ".[bench,quality]"'
    monkeypatch.chdir(tmp_path)
    assert install_hint("rtx") == f'pip install -e "{ROOT.resolve()}[rtx]"'
    # A wheel lies in a folder without pyproject.toml.
    monkeypatch.setattr(install, "_ROOT", tmp_path)
    assert install_hint("rtx") == 'pip install "consisti2v-rt[rtx]"'
