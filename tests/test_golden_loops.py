"""The published sampling loops, replayed by the torch-free loop from their noise alone.

Two judgements. The loop's own arithmetic: from the recorded first U-Net output to the recorded first step. And the
whole: through the exported ONNX graph in ONNX Runtime, and through the same U-Net in float64, against the recorded
final latents. The golden run is itself float32, and guidance 7.5 amplifies its U-Net's rounding: the exact (float64)
loop is 0.3e-6 to 2.2e-6 from it. So a float32 U-Net, the published one included, ends 0.4e-6 to 3.5e-6 from it,
depending on the processor.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.numpy import load_file  # noqa: E402
from safetensors.torch import load_file as load_tensors  # noqa: E402

from consisti2v_rt.export.onnx_graph import stage_spec, torch_reference, write_graph  # noqa: E402
from consisti2v_rt.export.unet import VideoUNet  # noqa: E402
from consisti2v_rt.export.unet_stages import text_tensor_names, unet_export  # noqa: E402
from consisti2v_rt.kernels.ddim import SchedulerConfig, alphas_cumprod, ddim_table  # noqa: E402
from consisti2v_rt.kernels.frame_init import frame_init, frame_init_mask  # noqa: E402
from consisti2v_rt.kernels.guidance import BRANCHES, combine_guidance, guidance_mode  # noqa: E402
from consisti2v_rt.kernels.sampler import sampler_step  # noqa: E402
from consisti2v_rt.runtime.loop.batches import BatchedUNet  # noqa: E402
from consisti2v_rt.runtime.loop.denoise import FrameInitPlan, Guidance, denoise_clip  # noqa: E402
from consisti2v_rt.runtime.session import OnnxCpuSession  # noqa: E402
from consisti2v_rt.runtime.timings import Timings  # noqa: E402

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "data" / "golden"
INDEX = json.loads((GOLDEN / "pipeline" / "index.json").read_text())
LOOPS = [name for name, entry in INDEX.items() if (GOLDEN / "pipeline" / f"{name}.safetensors").is_file()]


class TorchPredictor:
    """The torch U-Net behind the loop, in any precision."""

    def __init__(self, unet: VideoUNet, text: np.ndarray, stride: int, branches: int) -> None:
        self.unet, self.stride, self.branches = unet, stride, branches
        self.dtype = next(unet.parameters()).dtype
        with torch.no_grad():
            self.text = unet.text_key_values(torch.from_numpy(text).to(self.dtype))

    def start(self, first_frames):
        self.first = torch.from_numpy(first_frames).flatten(0, 1).to(self.dtype)

    def predict(self, sample, timestep, guided=True):
        assert guided, "the published loop guides every step"
        rows = torch.from_numpy(np.concatenate([sample] * self.branches)).to(self.dtype)
        with torch.no_grad():
            out = self.unet.denoise(rows, timestep, self.text, self.first, self.stride)
        return out.float().numpy().reshape(self.branches, *sample.shape)


@pytest.fixture(scope="module")
def unet() -> VideoUNet:
    model = VideoUNet.from_config(json.loads((GOLDEN / "A" / "config.json").read_text()))
    model.load_state_dict(load_tensors(GOLDEN / "A" / "weights.safetensors"))
    return model.prepare_for_inference()


@pytest.fixture(scope="module")
def unet_double() -> VideoUNet:
    model = VideoUNet.from_config(json.loads((GOLDEN / "A" / "config.json").read_text()))
    model.load_state_dict(load_tensors(GOLDEN / "A" / "weights.safetensors"))
    return model.prepare_for_inference().double()


@pytest.fixture(scope="module")
def unet_session(unet, tmp_path_factory) -> OnnxCpuSession:
    """Config A exported with a batch of 2: loops of 1, 3 and 4 rows run in turns."""
    stage = unet_export(unet, (16, 16), 2, torch.randn, {})
    path = tmp_path_factory.mktemp("unet") / "unet.onnx"
    reference = torch_reference(stage)
    write_graph(stage, path, {})
    return OnnxCpuSession(path, stage_spec(stage, reference, path.name, "fp32"))


def replay(name: str, make_predictor) -> tuple[np.ndarray, np.ndarray]:
    """Final latents of a golden loop from its noise, first frame and text alone, and the recorded ones."""
    entry, data = INDEX[name], load_file(GOLDEN / "pipeline" / f"{name}.safetensors")
    options = entry["kwargs"]
    scheduler = SchedulerConfig.from_dict(entry["scheduler"])
    table = ddim_table(scheduler, options["num_inference_steps"], options["eta"])
    assert table.timesteps.tolist() == entry["timesteps"]
    scales = (options["guidance_scale_txt"], options["guidance_scale_img"])
    guidance = Guidance(guidance_mode(*scales), *scales, options["guidance_rescale"])
    branches = BRANCHES[guidance.mode]
    predictor = make_predictor(data["text_embeddings"], options["frame_stride"], branches)
    videos = len(data["chunk0.noise"])
    plan = None
    if options["use_frameinit"]:
        kind, order, d_s, d_t = entry["filter"]
        mask = frame_init_mask(kind, *data["chunk0.noise"].shape[2:], d_s, d_t, order or 4)
        plan = FrameInitPlan(float(alphas_cumprod(scheduler)[options["frameinit_noise_level"]]), mask)
    first_frame = data["chunk0.first_frame_input"][-videos:]
    clips = []
    for chunk in range(options.get("autoregress_steps", 1)):
        clips.append(
            denoise_clip(
                predictor,
                first_frame,
                first_frame,
                data[f"chunk{chunk}.noise"],
                table=table,
                guidance=guidance,
                frame_init_plan=plan,
                draw_noise=lambda shape: pytest.fail("eta is 0: no noise may be drawn"),
            )
        )
        first_frame = clips[-1][:, :, -1:]
    latents = np.concatenate([clips[0], *(clip[:, :, 1:] for clip in clips[1:])], axis=2)
    return latents, data["final_latents"]


@pytest.mark.parametrize("name", LOOPS)
def test_loop_through_the_exported_graph(name, unet, unet_session, relative_l2):
    def predictor(text, stride, branches):
        with torch.no_grad():
            pairs = unet.text_key_values(torch.from_numpy(text))
        names = text_tensor_names(unet)
        tensors = [tensor.numpy() for pair in pairs.values() for tensor in pair]
        rows = [
            {key: array[row : row + 1] for key, array in zip(names, tensors, strict=True)} for row in range(len(text))
        ]
        videos = len(rows) // branches
        texts = [rows[branch * videos : (branch + 1) * videos] for branch in range(branches)]
        return BatchedUNet(unet_session, texts, stride, Timings())

    got, expected = replay(name, predictor)
    assert relative_l2(got, expected) < 4e-6


@pytest.mark.parametrize("name", LOOPS)
def test_exact_loop(name, unet_double, relative_l2):
    """With the U-Net in float64: what is left is the golden run's own rounding, up to 2.2e-6."""
    got, expected = replay(name, lambda text, stride, branches: TorchPredictor(unet_double, text, stride, branches))
    assert relative_l2(got, expected) < (2.3e-6 if name in ("ar2_text_cfg", "text_cfg_frameinit_butterworth") else 2e-6)


@pytest.mark.parametrize("name", LOOPS)
def test_arithmetic_beside_the_unet(name, relative_l2):
    """FrameInit, guidance and the scheduler step, from the recorded U-Net output: 2e-7."""
    entry, data = INDEX[name], load_file(GOLDEN / "pipeline" / f"{name}.safetensors")
    options = entry["kwargs"]
    scheduler = SchedulerConfig.from_dict(entry["scheduler"])
    table = ddim_table(scheduler, options["num_inference_steps"])
    scales = (options["guidance_scale_txt"], options["guidance_scale_img"])
    for chunk in range(options.get("autoregress_steps", 1)):
        noise = data[f"chunk{chunk}.noise"]
        initial = noise
        if options["use_frameinit"]:
            kind, order, d_s, d_t = entry["filter"]
            mask = frame_init_mask(kind, *noise.shape[2:], d_s, d_t, order or 4)
            static = data[f"chunk{chunk}.first_frame_input"][-len(noise) :]
            level = float(alphas_cumprod(scheduler)[options["frameinit_noise_level"]])
            initial = frame_init(static, noise, level, mask)
            assert relative_l2(initial, data[f"chunk{chunk}.frameinit"]) < 5e-7
        mode = guidance_mode(*scales)
        preds = data[f"chunk{chunk}.eps0"]
        preds = preds.reshape(BRANCHES[mode], -1, *preds.shape[1:])
        guided = combine_guidance(preds, mode, *scales, options["guidance_rescale"])
        step = sampler_step(initial[None, :, :, 1:], guided, table.matrices[0])[0]
        assert relative_l2(step, data[f"chunk{chunk}.step0.latents"]) < 5e-7
