"""What is installed of this package's requirements: versions from the metadata alone, nothing is imported."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from importlib import metadata

from ...locations import ROOT
from ..install import install_hint

PURPOSES = {
    "export": "exports a checkpoint as a bundle",
    "rtx": "builds and runs engines of TensorRT for RTX, for GeForce and RTX cards",
    "tensorrt": "builds and runs engines of TensorRT, for data-centre GPUs",
    "cuda": "runs bundles with ONNX Runtime on an NVIDIA GPU, without engines",
    "openvino": "runs bundles with OpenVINO, faster on the processor",
    "kernels": "compiles the CUDA kernels",
    "serve": "consisti2v serve: the video API and a page",
    "ray": "batch and serve on a Ray cluster",
    "bench": "consisti2v bench: measures time and memory",
    "quality": "consisti2v evaluate: measures videos",
    "fvd": "FVD and RAFT for consisti2v evaluate",
    "docs": "the documentation as a site",
}
"""Of every extra of ``pyproject.toml`` but dev."""
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?P<versions>[^;\[\s]*)\s*(?:;.*?extra == ['\"](?P<extra>\w+)['\"])?")
# Distributions that hold the same module.
_INSTEAD = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")}


@dataclass(frozen=True)
class Part:
    """The requirements of the runtime or of an extra, as they are installed."""

    found: dict[str, str]
    """Package -> version."""
    faults: tuple[str, ...]
    """What is missing, or has a version that does not fit."""

    @property
    def state(self) -> str:
        if not self.faults:
            return "installed"
        return "incomplete" if self.found else "not installed"


def parts() -> dict[str, Part]:
    """What each extra of :data:`PURPOSES` needs; the empty name stands for the runtime, first."""
    needed: dict[str, dict[str, str]] = {"": {}, **{extra: {} for extra in PURPOSES}}
    for line in _requirements():
        match = _REQUIREMENT.match(line)
        if match is not None and (match["extra"] or "") in needed:
            needed[match["extra"] or ""][match["name"]] = match["versions"]
    return {extra: _part(packages) for extra, packages in needed.items()}


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    line = install_hint(extra) if extra else install_hint()
    return f"pip uninstall onnxruntime, then {line}" if extra == "cuda" else line


def _requirements() -> list[str]:
    """Of the installed package; of the source tree where it runs without being installed."""
    try:
        found = metadata.requires("consisti2v-rt")
    except Exception:  # no metadata, or unreadable
        found = None
    if found:
        return found
    try:
        # Part of Python from 3.11 on.
        tomllib = importlib.import_module("tomllib")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (ImportError, OSError, ValueError, KeyError):
        return []
    extras = project["optional-dependencies"].items()
    return [*project["dependencies"], *(f"{line} ; extra == '{extra}'" for extra, lines in extras for line in lines)]


def _part(packages: dict[str, str]) -> Part:
    found: dict[str, str] = {}
    missing: list[str] = []
    faults: list[str] = []
    for package, versions in packages.items():
        held = {name: _installed(name) for name in (package, *_INSTEAD.get(package, ()))}
        name, version = next(((name, version) for name, version in held.items() if version), (package, ""))
        if not version:
            missing.append(package)
        elif _fits(version, versions):
            found[name] = version
        else:
            faults.append(f"{name} {version} is installed, {versions} is needed")
    if missing:
        faults.append(f"lacks {', '.join(missing)}")
    return Part(found, tuple(faults))


def _installed(package: str) -> str:
    """The version; empty where it is not installed, or its metadata are damaged."""
    try:
        version = metadata.version(package)
    except Exception:
        return ""
    return version if isinstance(version, str) else ""


def _fits(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(wanted).contains(version, prereleases=True)
    except Exception:  # packaging itself may be missing or damaged, or the version no version
        return True
