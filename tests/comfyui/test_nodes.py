"""The ComfyUI nodes on a double of its API, loaded from the repository's folder as ComfyUI does it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from consisti2v_rt import ImageToVideo  # noqa: E402
from consisti2v_rt.tests.comfyui.double import ComfyUI, InterruptProcessingException  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def comfy() -> Any:
    """A running ComfyUI with the repository among its nodes: its state, the nodes by their ids, and their models."""
    state, former = ComfyUI(), dict(sys.modules)
    sys.modules.update(state.modules())
    name = "/comfyui/custom_nodes/consisti2v-rt"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    assert f"{name}.comfyui" not in sys.modules and not hasattr(package, "NODE_CLASS_MAPPINGS")
    nodes = asyncio.run(asyncio.run(package.comfy_entrypoint()).get_node_list())
    yield state, {node.define_schema().node_id: node for node in nodes}, sys.modules[f"{name}.comfyui.models"]
    sys.modules[f"{name}.comfyui.models"].release()
    for added in sys.modules.keys() - former.keys():
        if added.startswith((name, "comfy")):
            del sys.modules[added]


@pytest.fixture
def photo() -> Any:
    """IMAGE: float [1, height, width, 3] from 0 to 1."""
    return torch.rand(1, 80, 64, 3, generator=torch.Generator().manual_seed(0))


def defaults(node: Any) -> dict[str, Any]:
    """What the inputs say when nobody touches them."""
    given = {port.id: port.default for port in node.define_schema().inputs if not port.named.get("optional")}
    return {name: value for name, value in given.items() if name not in ("model", "image")}


def run(nodes: Any, photo: Any, **changes: Any) -> Any:
    model = nodes["ConsistI2VLoadBundle"].execute("demo", "cpu").args[0]
    animate = nodes["ConsistI2VAnimate"]
    return animate.execute(model=model, image=photo, **(defaults(animate) | changes)).args


def test_the_video_is_the_one_that_the_library_makes(comfy, photo):
    state, nodes, _ = comfy
    motion = nodes["ConsistI2VCameraMotion"].execute("zoom_in").args[0]
    state.progress.clear()
    frames, video = run(nodes, photo, prompt="zoom in", seed=3, num_inference_steps=2, camera_motion=motion)
    pixels = (photo[0] * 255).round().to(torch.uint8).numpy()
    with ImageToVideo.from_bundle("demo", device="cpu") as animate:
        expected = animate(pixels, "zoom in", seed=3, num_inference_steps=2, camera_motion="zoom_in").frames[0]
    assert frames.shape == (16, 64, 64, 3) and frames.dtype == torch.float32
    assert np.array_equal((frames.numpy() * 255).round().astype(np.uint8), expected)
    assert video.components.images is frames and video.components.frame_rate == 8
    assert [step[:2] for step in state.progress] == [(1, 2), (2, 2)]
    assert all(preview[0] == "JPEG" and max(preview[1].size) > 64 for *_, preview in state.progress)


def test_several_photos_are_one_batch_of_frames(comfy, photo):
    frames, _ = run(comfy[1], photo.repeat(2, 1, 1, 1), num_inference_steps=1)
    assert frames.shape[0] == 32


def test_an_interrupt_ends_the_run_at_once(comfy, photo):
    state, nodes, _ = comfy
    run(nodes, photo, num_inference_steps=1)  # everything is loaded
    timer = threading.Timer(0.5, lambda: setattr(state, "interrupted", True))
    timer.start()
    with pytest.raises(InterruptProcessingException):
        run(nodes, photo, num_inference_steps=900)
    timer.join()
    assert not state.interrupted
    assert run(nodes, photo, num_inference_steps=1)[0].shape[0] == 16


def test_models_go_when_memory_is_asked_for_and_come_back(comfy, photo):
    _, nodes, models = comfy
    run(nodes, photo, num_inference_steps=1)
    management = sys.modules["comfy.model_management"]
    management.free_memory(1 << 20, "cpu")
    assert models._loaded
    management.free_memory(1e30, "cpu")
    assert not models._loaded
    assert run(nodes, photo, num_inference_steps=1)[0].shape[0] == 16


def test_mistakes_are_sentences(comfy, photo):
    for changes, told in (
        ({"guidance_interval": "a,b"}, "give numbers with commas"),
        ({"height": 65}, "multiple of"),
    ):
        with pytest.raises(Exception, match=told):
            run(comfy[1], photo, **changes)


def test_the_example_workflow_names_inputs_that_exist(comfy):
    workflow = json.loads((ROOT / "comfyui" / "example_workflow.json").read_text())
    ours = [node for node in workflow.values() if node["class_type"].startswith("ConsistI2V")]
    for node in ours:
        schema = comfy[1][node["class_type"]].define_schema()
        ports = {port.id: port for port in schema.inputs}
        assert node["inputs"].keys() <= ports.keys()
        for name, value in node["inputs"].items():
            assert ports[name].options is None or value in ports[name].options
    assert len(ours) == 2
