"""Feature caching: whole and shallow U-Net steps, in torch, as graphs, and behind the loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime.loop.batches import BatchedUNet
from consisti2v_rt.runtime.loop.feature_cache import FeatureCache
from consisti2v_rt.runtime.request.settings import GenerationSettings
from consisti2v_rt.runtime.timings import Timings

torch = pytest.importorskip("torch")

from consisti2v_rt.export.onnx_graph import compare_with_torch, stage_spec, torch_reference, write_graph  # noqa: E402
from consisti2v_rt.export.random_options import TINY_UNET  # noqa: E402
from consisti2v_rt.export.unet import VideoUNet  # noqa: E402
from consisti2v_rt.export.unet.simplified_text import simplify_and_measure  # noqa: E402
from consisti2v_rt.export.unet_stages import (  # noqa: E402
    text_tensor_names,
    unet_axes,
    unet_export,
)
from consisti2v_rt.runtime.session import OnnxCpuSession  # noqa: E402

FRAMES = 4


@pytest.fixture(scope="module")
def unet() -> VideoUNet:
    torch.manual_seed(0)
    model = VideoUNet.from_config({**TINY_UNET, "n_frames": FRAMES})
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.constant_(parameter, 0.3)
    return model.prepare_for_inference()


def clip(unet: VideoUNet, seed: int = 0, height: int = 6, width: int = 5):
    generator = torch.Generator().manual_seed(seed)
    config = unet.config
    sample = torch.randn(2, config.in_channels, FRAMES - 1, height, width, generator=generator)
    first = torch.randn(2, config.in_channels, 1, height, width, generator=generator)
    return sample, first, torch.randn(2, 77, config.cross_attention_dim, generator=generator)


def branches(unet: VideoUNet) -> range:
    return range(unet.skip_count - 1)


def test_a_shallow_step_on_the_same_input_is_the_whole_step(unet):
    """Odd sizes too; the features have the announced shape."""
    sample, first, text = clip(unet)
    by_path = unet.text_key_values(text)
    whole = unet.denoise(sample, 501, by_path, first, 3)
    for branch in branches(unet):
        kept, features = unet.denoise_and_keep(sample, 501, by_path, first, 3, branch)
        assert torch.equal(kept, whole)
        assert features.shape == (2 * FRAMES, *unet.deep_feature_shape(branch, 6, 5))
        shallow_text = {path: by_path[path] for path in unet.shallow_text_paths(branch)}
        again = unet.denoise_from_features(sample, 501, shallow_text, first, 3, branch, features)
        torch.testing.assert_close(again, whole, rtol=0, atol=1e-6)


def test_a_shallow_step_sees_the_new_sample_and_the_old_depths(unet):
    (sample, first, text), (other, _, _) = clip(unet), clip(unet, seed=1)
    by_path = unet.text_key_values(text)
    _, features = unet.denoise_and_keep(sample, 501, by_path, first, 3, 0)
    shallow = unet.denoise_from_features(other, 481, by_path, first, 3, 0, features)
    assert not torch.allclose(shallow, unet.denoise(sample, 501, by_path, first, 3), atol=1e-3)
    assert not torch.allclose(shallow, unet.denoise(other, 481, by_path, first, 3), atol=1e-4)


@pytest.mark.parametrize("branch", [-1, 99])
def test_other_branches_are_refused(unet, branch):
    with pytest.raises(ValueError, match=f"Cache branch {branch} is not possible: this model has {unet.skip_count}"):
        unet.deep_feature_shape(branch, 8, 8)


class Recorder:
    """A session that counts its runs; its features are the number of its run."""

    def __init__(self, names: list[str], batch: int) -> None:
        self.inputs = {name: np.zeros((batch, 2), np.float32) for name in names}
        self.inputs["timestep"] = np.zeros(1, np.int64)
        self.outputs = {
            "noise_pred": np.zeros((batch, 2), np.float32),
            "deep_features": np.zeros((batch, 1), np.float32),
        }
        self.seen: list[object] = []

    def bind_input(self, name: str, array: np.ndarray) -> None:
        self.inputs[name] = array

    def run(self) -> None:
        features = self.inputs.get("deep_features")
        self.seen.append(None if features is None else features.copy())
        self.outputs["deep_features"][...] = len(self.seen)


def rows(branches: int, batch: int, interval: int):
    whole = Recorder(["sample", "first_frame_latents", "a.key", "b.key"], batch)
    shallow = Recorder(["sample", "first_frame_latents", "a.key", "deep_features"], batch)
    texts = [[{"a.key": np.ones((1, 2)), "b.key": np.ones((1, 2))}]] * branches
    unet = BatchedUNet(whole, texts, 3, Timings(), cache=FeatureCache(interval, lambda batch: shallow))
    unet.start(np.zeros((branches, 1, 2), np.float32))
    return unet, whole, shallow


def test_every_third_step_is_a_whole_one():
    unet, whole, shallow = rows(branches=2, batch=2, interval=3)
    for _ in range(7):
        unet.predict(np.zeros((1, 2), np.float32), 1)
    assert len(whole.seen) == 3 and len(shallow.seen) == 4
    assert [int(features[0, 0]) for features in shallow.seen] == [1, 1, 2, 2]
    assert "b.key" not in shallow.inputs


def test_each_turn_gets_its_own_features():
    """Two branches over a batch of one: two whole runs, then two shallow ones."""
    unet, whole, shallow = rows(branches=2, batch=1, interval=2)
    for _ in range(2):
        unet.predict(np.zeros((1, 2), np.float32), 1)
    assert len(whole.seen) == 2
    assert [int(features[0, 0]) for features in shallow.seen] == [1, 2]


def test_a_new_clip_and_the_end_of_guidance_begin_with_a_whole_step():
    unet, whole, shallow = rows(branches=2, batch=2, interval=100)
    sample = np.zeros((1, 2), np.float32)
    unet.predict(sample, 3)
    unet.predict(sample, 2, guided=False)
    unet.predict(sample, 1, guided=False)
    assert (len(whole.seen), len(shallow.seen)) == (2, 1)
    unet.start(np.zeros((2, 1, 2), np.float32))
    unet.predict(sample, 3, guided=False)
    assert (len(whole.seen), len(shallow.seen)) == (3, 1)


def test_the_interval_is_checked(demo_manifest):
    with pytest.raises(UserError, match="no shallow U-Net; leave it at 1, or export with --cache-branch 0"):
        GenerationSettings(cache_interval=2).resolved(demo_manifest)
    caching = replace(demo_manifest, model=replace(demo_manifest.model, cache_branch=0))
    assert GenerationSettings(cache_interval=2).resolved(caching).cache_interval == 2
    for impossible in (0, 1.5, True):
        with pytest.raises(UserError, match=r"cache_interval .* whole number from 1"):
            GenerationSettings(cache_interval=impossible).resolved(caching)


@pytest.fixture
def demo_manifest(demo_bundle):
    from consisti2v_rt.runtime.bundle.bundle import Bundle

    return Bundle.open(demo_bundle, verify=False).manifest


@pytest.mark.rare
def test_both_graphs_agree_with_torch_and_pass_the_features_on(tmp_path, relative_l2):
    """Exported with an open batch, text attention simplified: the whole step, then a shallow one from its buffer."""
    torch.manual_seed(1)
    unet = VideoUNet.from_config({**TINY_UNET, "n_frames": FRAMES}).prepare_for_inference()
    loss = simplify_and_measure(unet, 8, 8)
    assert 0 < loss < 1
    names = text_tensor_names(unet)
    assert names and all(name.endswith(".mean") and "tempo_attns" not in name for name in names)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int):
        return torch.randn(*shape, generator=generator)

    axes = unet_axes(unet, dynamic=False, cache_branch=1)
    sizes = {"rows": torch.export.Dim("rows", min=1, max=64)}
    sessions = {}
    for is_shallow in (False, True):
        stage = unet_export(unet, (8, 8), 2, random, axes, 1, shallow=is_shallow)
        reference, path = torch_reference(stage), tmp_path / f"{stage.name}.onnx"
        write_graph(stage, path, sizes)
        spec = stage_spec(stage, reference, path.name, "fp32")
        assert compare_with_torch(path, spec, reference).relative_l2 < 2e-5
        sessions[stage.name] = OnnxCpuSession(path, spec, {"rows": 3})
    whole, shallow = sessions["unet"], sessions["unet_shallow"]
    numbers = np.random.default_rng(0)
    for name, array in whole.inputs.items():
        array[...] = (
            501 if name == "timestep" else 3 if name == "frame_stride" else numbers.standard_normal(array.shape)
        )
    whole.run()
    for name in shallow.inputs:
        shallow.bind_input(name, whole.outputs["deep_features"] if name == "deep_features" else whole.inputs[name])
    shallow.run()
    assert relative_l2(shallow.outputs["noise_pred"], whole.outputs["noise_pred"]) < 2e-6
