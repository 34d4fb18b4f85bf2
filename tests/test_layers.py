"""Who may import whom: kernels nothing of the runtime, the runtime nothing of export and benchmarks; no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "consisti2v_rt"

MAY_IMPORT = {
    "errors": set(),
    "locations": set(),
    "kernels": {"kernels"},
    "runtime": {"runtime", "kernels", "errors", "locations"},
    "serve": {"serve", "batch", "runtime", "kernels", "errors", "locations"},
    "export": {"export", "runtime", "kernels", "errors", "locations"},
    "batch": {"batch", "runtime", "kernels", "errors", "locations"},
    "comfyui": {"comfyui", "serve", "runtime", "kernels", "errors", "locations"},
    "benchmarks": {"benchmarks", "export", "runtime", "kernels", "errors", "locations"},
}
"""Folder or file of the root -> those whose modules it may import."""


def modules() -> dict[str, Path]:
    """Name without the package -> file, of everything that is installed."""
    files = [*ROOT.glob("*.py"), *(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))]
    names = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a module imports anywhere, those for type checkers alone left out."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if package else []
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                found = f"{target}.{alias.name}".strip(".")
                yield found if found in known else target
        elif isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(text.split(".")[0] == PACKAGE for text in named), f"{name}: imports here are relative"


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imports(name, path, known)) - {name} for name, path in known.items()}


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_layer_imports_only_those_below(graph, layer):
    wrong = {
        f"{name} imports {target}"
        for name, targets in graph.items()
        if name.split(".")[0] == layer
        for target in targets
        if target.split(".")[0] not in MAY_IMPORT[layer]
    }
    # The version is the package's own.
    assert not {text for text in wrong if not text.endswith("imports ")}


def test_there_are_no_circles(graph):
    """Not even by imports inside functions."""
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for target in sorted(graph.get(name, set()) - packages):
            visit(target, [*trail, name])
        done.add(name)

    for name in sorted(graph.keys() - packages):
        visit(name, [])
