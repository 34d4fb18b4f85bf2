"""The published baseline's loop, scheduler, FrameInit and noise against the published pipeline's tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from consisti2v_rt.benchmarks.published import PublishedUNet  # noqa: E402
from consisti2v_rt.benchmarks.published.pipeline import (  # noqa: E402
    FrameInitOptions,
    ddim,
    draw_noise,
    guide,
    low_pass_filter,
    mix_frequencies,
    sample,
    sample_autoregressive,
)
from consisti2v_rt.errors import UserError  # noqa: E402

Relative = Callable[[Any, Any], float]

# One operation after another on the same numbers: float32 rounding of a reordered sum at most.
EXACT = 5e-7
# The U-Net's own float32 rounding, 1.4e-6 between two CPUs, times a guidance scale of 7.5 on the difference.
LOOP = 5e-6
CHAIN = "ar2_text_cfg"
LOOPS = (
    "both_cfg",
    "no_cfg",
    "text_cfg",
    "text_cfg_batch2",
    "text_cfg_frameinit_butterworth",
    "text_cfg_no_frameinit_vanilla",
    "text_cfg_nvpp2",
    "text_cfg_rescale07",
    "text_cfg_trailing_zsnr_v",
)
SCHEDULES: dict[str, dict[str, Any]] = {
    "shipped": {},
    "zsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
}


@pytest.fixture(scope="module")
def unet(golden: Path) -> PublishedUNet:
    model = PublishedUNet(json.loads((golden / "A" / "config.json").read_text()))
    model.load_state_dict(load_file(golden / "A" / "weights.safetensors"))
    return model.eval()


def load_options(golden: Path, tag: str) -> dict[str, Any]:
    entry = json.loads((golden / "pipeline" / "index.json").read_text())[tag]
    kwargs = entry["kwargs"]
    frame_init = None
    if kwargs["use_frameinit"]:
        kind, order, d_s, d_t = entry["filter"]
        frame_init = FrameInitOptions(kind, order or 4, d_s, d_t, kwargs["frameinit_noise_level"])
    names = ("num_inference_steps", "guidance_scale_txt", "guidance_scale_img", "guidance_rescale")
    options = {name: kwargs[name] for name in (*names, "frame_stride", "eta")}
    return {**options, "frame_init": frame_init, "scheduler": entry["scheduler"]}


@pytest.mark.parametrize("tag", LOOPS)
def test_loop_replays_the_published_loop(golden: Path, unet: PublishedUNet, tag: str, relative_l2: Relative) -> None:
    tensors = load_file(golden / "pipeline" / f"{tag}.safetensors")
    timesteps = json.loads((golden / "pipeline" / "index.json").read_text())[tag]["timesteps"]
    steps: list[tuple[int, Tensor]] = []
    first_frames: list[Tensor] = []
    unet_inputs = unet.register_forward_pre_hook(
        lambda module, args, kwargs: first_frames.append(kwargs["first_frame_latents"]), with_kwargs=True
    )
    with unet_inputs:
        final = sample(
            unet,
            tensors["final_latents"][:, :, :1],
            tensors["text_embeddings"],
            tensors["chunk0.noise"],
            **load_options(golden, tag),
            on_step=lambda i, timestep, latents: steps.append((timestep, latents)),
        )
    assert [timestep for timestep, _ in steps] == timesteps
    for first in first_frames:
        assert relative_l2(first, tensors["chunk0.first_frame_input"]) <= EXACT
    errors = [relative_l2(x, tensors[f"chunk0.step{i}.latents"]) for i, (_, x) in enumerate(steps)]
    errors.append(relative_l2(final, tensors["final_latents"]))
    print(f"{tag}: worst step {max(errors):.2e}, final latents {errors[-1]:.2e}")
    assert max(errors) <= LOOP


def test_clips_in_a_row_replay_the_published_chain(golden: Path, unet: PublishedUNet, relative_l2: Relative) -> None:
    tensors = load_file(golden / "pipeline" / f"{CHAIN}.safetensors")
    final = sample_autoregressive(
        unet,
        tensors["final_latents"][:, :, :1],
        tensors["text_embeddings"],
        [tensors["chunk0.noise"], tensors["chunk1.noise"]],
        **load_options(golden, CHAIN),
    )
    error = relative_l2(final, tensors["final_latents"])
    print(f"{CHAIN}: final latents {error:.2e}")
    assert error <= LOOP


@pytest.mark.parametrize("tag", (*LOOPS, CHAIN))
def test_loop_is_exact_apart_from_the_unet(golden: Path, tag: str, relative_l2: Relative) -> None:
    """FrameInit from the recorded noise, then guidance and one step from the recorded first prediction."""
    tensors, options = load_file(golden / "pipeline" / f"{tag}.safetensors"), load_options(golden, tag)
    predictions = iter([tensors["chunk0.eps0"]])
    seen: list[Tensor] = []

    class StopLoopError(Exception):
        pass

    def recorded(x: Tensor, timestep: Tensor, **inputs: Any) -> Tensor:
        seen.append(x)
        return next(predictions)

    def stop(i: int, timestep: int, latents: Tensor) -> None:
        seen.append(latents)
        raise StopLoopError

    first, text, noise = (tensors[k] for k in ("final_latents", "text_embeddings", "chunk0.noise"))
    with pytest.raises(StopLoopError):
        sample(recorded, first[:, :, :1], text, noise, **options, on_step=stop)
    start = tensors.get("chunk0.frameinit", noise)[:, :, 1:]
    assert relative_l2(seen[0][: len(start)], start) <= EXACT
    assert relative_l2(seen[1], tensors["chunk0.step0.latents"]) <= EXACT


@pytest.mark.parametrize("name", SCHEDULES)
def test_scheduler_matches(golden: Path, name: str, relative_l2: Relative) -> None:
    options = SCHEDULES[name]
    tensors = load_file(golden / "pipeline" / "scheduler.safetensors")
    listed = json.loads((golden / "pipeline" / "scheduler.json").read_text())[name]
    for count in (5, 25, 30, 50):
        assert ddim(count, **options).timesteps.tolist() == listed[f"timesteps{count}"]
    assert relative_l2(ddim(**options).alphas_cumprod, tensors[f"{name}.alphas_cumprod"]) <= EXACT
    x, prediction, noise = (tensors[f"{name}.{part}"] for part in ("x", "e", "variance_noise"))
    scheduler = ddim(**options)
    checked = 0
    for key, expected in tensors.items():
        kind, _, rest = key.removeprefix(f"{name}.").partition("_t")
        if not key.startswith(name) or kind not in ("step", "add_noise"):
            continue
        timestep, _, eta = rest.partition(".eta")
        if kind == "add_noise":
            result = scheduler.add_noise(x, noise, torch.tensor([int(timestep)]))
        else:
            amount = float(eta.replace("p", "."))
            result = scheduler.step(prediction, int(timestep), x, eta=amount, variance_noise=noise).prev_sample
        assert relative_l2(result, expected) <= EXACT, key
        checked += 1
    assert checked == 9


def test_frame_init_matches_for_every_filter(golden: Path, relative_l2: Relative) -> None:
    tensors = load_file(golden / "frameinit" / "frameinit.safetensors")
    entries = json.loads((golden / "frameinit" / "index.json").read_text())
    assert {entry["filter"] for entry in entries} == {"gaussian", "butterworth", "ideal", "box"}
    for entry in entries:
        options = FrameInitOptions(entry["filter"], entry["n"] or 4, entry["d_s"], entry["d_t"])
        mask = low_pass_filter(tuple(entry["shape"][2:]), options)
        case, expected = entry["key"].split(".")[0], tensors[f"{entry['key']}.lpf"]
        assert torch.allclose(mask, expected, rtol=1e-6, atol=1e-7), entry
        result = mix_frequencies(tensors[f"{case}.x"], tensors[f"{case}.noise"], mask)
        assert relative_l2(result, tensors[f"{entry['key']}.out"]) <= EXACT, entry


@pytest.mark.parametrize("method", ["pyoco_mixed", "pyoco_progressive", "vanilla"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [7, 42])
def test_noise_matches(golden: Path, method: str, alpha: float, seed: int, relative_l2: Relative) -> None:
    expected = load_file(golden / "frameinit" / "noise.safetensors")[f"{method}.alpha{alpha}.seed{seed}.out"]
    drawn = draw_noise(tuple(expected.shape), method, alpha, torch.Generator().manual_seed(seed))
    assert relative_l2(drawn, expected) <= EXACT


def test_what_the_original_cannot_run_is_refused() -> None:
    first, noise, text = torch.zeros(1, 4, 1, 8, 8), torch.zeros(1, 4, 4, 8, 8), torch.zeros(2, 3, 5)
    with pytest.raises(UserError, match="rescale"):
        sample(torch.nn.Identity(), first, text, noise, guidance_scale_img=1.5, guidance_rescale=0.7)
    with pytest.raises(UserError, match="3 text embeddings"):
        sample(torch.nn.Identity(), first, text, noise, guidance_scale_img=1.5)
    with pytest.raises(UserError, match="filter must be one of"):
        low_pass_filter((4, 8, 8), FrameInitOptions("bessel"))
    with pytest.raises(UserError, match="noise method"):
        draw_noise((1, 4, 2, 8, 8), "white")
    assert torch.equal(guide(noise, 1.0, 1.0, 0.0), noise)
