"""Copies of the demo bundle that may be written to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, numpy_helper

from consisti2v_rt.runtime.bundle import hash_files


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle: the tiny model, 128 by 128, two rows."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def fp16_bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle with all stages in fp16; not to be changed."""
    from consisti2v_rt.export.precision import write_variant

    folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("fp16") / "bundle"))
    write_variant(folder, "fp16")
    return folder


@pytest.fixture
def change_weight() -> Callable[[Path, str, str, float], None]:
    """Multiply one weight of a stage of a bundle, the manifest's hashes with it."""

    def change(bundle: Path, stage: str, name: str, factor: float) -> None:
        path = bundle / stage / f"{stage}.onnx"
        model: ModelProto = onnx.load(str(path))
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
def demo_bundle() -> Path:
    """In this folder: the demo bundle's stages with random weights at 128x128, so that rounding is not all zeros. The
    demo model itself has a file of its own.
    """
    return Path(__file__).parents[1] / "data" / "untrained_bundle"
