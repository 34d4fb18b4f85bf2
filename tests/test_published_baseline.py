"""The published baseline's U-Net against the published implementation's own outputs, keys and cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from consisti2v_rt.benchmarks.published import PublishedUNet  # noqa: E402
from consisti2v_rt.errors import UserError  # noqa: E402

Relative = Callable[[Any, Any], float]

# Golden README: float64 differs from float32 by 1e-6, the smallest wrong implementation tried by 9e-6.
BOUND = 5e-6


def load_config(golden: Path, name: str) -> dict[str, Any]:
    return json.loads((golden / name / "config.json").read_text())


def load_unet(golden: Path, name: str, **changes: Any) -> PublishedUNet:
    """Changes to the config may leave some of the golden weights without a place, but none missing."""
    unet = PublishedUNet({**load_config(golden, name), **changes})
    missing, _ = unet.load_state_dict(load_file(golden / name / "weights.safetensors"), strict=not changes)
    assert not missing
    return unet.eval()


def load_case(golden: Path, name: str, case: str) -> tuple[dict[str, Tensor], Tensor]:
    tensors = load_file(golden / name / "io.safetensors")
    inputs = {key.removeprefix(f"{case}."): t for key, t in tensors.items() if key.startswith(f"{case}.")}
    return inputs, inputs.pop("output")


@pytest.mark.slow
@pytest.mark.parametrize(("config", "count"), [("A", 7), ("D", 2)])
@torch.no_grad()
def test_forward_matches_every_golden_case(golden: Path, config: str, count: int, relative_l2: Relative) -> None:
    unet = load_unet(golden, config)
    cases = {key.split(".")[0] for key in load_file(golden / config / "io.safetensors")}
    assert len(cases) == count
    errors = {}
    for case in sorted(cases):
        inputs, expected = load_case(golden, config, case)
        errors[case] = relative_l2(unet(**inputs), expected)
    worst = max(errors, key=errors.__getitem__)
    print(f"config {config}: worst case {worst}, relative L2 {errors[worst]:.2e}")
    assert errors[worst] <= BOUND, errors


@pytest.mark.slow
@pytest.mark.parametrize(("config", "case"), [("A", "a0"), ("D", "d0")])
@torch.no_grad()
def test_inner_modules_match_the_trace(golden: Path, config: str, case: str, relative_l2: Relative) -> None:
    trace = load_file(golden / config / "trace.safetensors")
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[f"{case}.{name}"] = output[0] if isinstance(output, tuple) else output

        return hook

    unet = load_unet(golden, config)
    for name, module in unet.named_modules():
        module.register_forward_hook(record(name))
    unet(**load_case(golden, config, case)[0])
    assert trace and set(trace) <= set(seen)
    for name, expected in trace.items():
        assert relative_l2(seen[name], expected) <= BOUND, name


def test_full_size_has_the_published_keys(golden: Path) -> None:
    with torch.device("meta"):
        unet = PublishedUNet({})
    keys = {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in unet.state_dict().items()
    }
    assert keys == json.loads((golden / "keys_full.json").read_text())
    total = json.loads((golden / "params_full.json").read_text())["total"]
    assert sum(parameter.numel() for parameter in unet.parameters()) == total


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "tera"), [(1, 5.439), (2, 10.879), (3, 16.318)])
@torch.no_grad()
def test_full_size_costs_what_the_published_forward_costs(batch: int, tera: float) -> None:
    with torch.device("meta"):
        unet = PublishedUNet({})
        sample, first = torch.empty(batch, 4, 15, 32, 32), torch.empty(batch, 4, 1, 32, 32)
        text = torch.empty(batch, 77, 1024)
    with FlopCounterMode(display=False) as counter:
        unet(sample, 981, text, first, 3)
    # The same matrix products and convolutions: only the rounding of the recorded figure may differ.
    assert counter.get_total_flops() / 1e12 == pytest.approx(tera, rel=2e-4)


@torch.no_grad()
def test_gates_are_clamped_without_being_written(golden: Path) -> None:
    inputs, _ = load_case(golden, "A", "a0")
    gated, spatial = load_unet(golden, "A"), load_unet(golden, "A", use_temporal=False)
    gates = [parameter for name, parameter in gated.named_parameters() if name.endswith(".alpha")]
    for parameter in gates:
        parameter.fill_(1.5)
    # A gate of one or more is the identity, bit for bit.
    assert torch.equal(gated(**inputs), spatial(**inputs))
    assert gates and all(parameter.item() == 1.5 for parameter in gates)
    for parameter in gates:
        parameter.fill_(-0.5)
    below = gated(**inputs)
    for parameter in gates:
        parameter.fill_(0.0)
    assert torch.equal(below, gated(**inputs))


@torch.no_grad()
def test_dead_parameters_do_not_matter(golden: Path) -> None:
    inputs, _ = load_case(golden, "A", "a2")
    unet = load_unet(golden, "A")
    before = unet(**inputs)
    dead = [
        parameter
        for name, parameter in unet.named_parameters()
        if "rotary_bias" in name or ("conv3ds" in name and "time_emb_proj" in name)
    ]
    for parameter in dead:
        parameter.fill_(float("nan"))
    assert dead and torch.equal(before, unet(**inputs))


@pytest.mark.parametrize("option", ["augment_temporal_attention", "use_frame_stride_condition"])
@torch.no_grad()
def test_options_can_be_switched_off(golden: Path, option: str, relative_l2: Relative) -> None:
    inputs, expected = load_case(golden, "A", "a2")
    assert relative_l2(load_unet(golden, "A", **{option: False})(**inputs), expected) > 1e-3


@pytest.mark.parametrize(("height", "width"), [(9, 14), (7, 5)])
@torch.no_grad()
def test_sizes_that_do_not_halve_evenly_keep_their_size(height: int, width: int) -> None:
    torch.manual_seed(0)
    unet = PublishedUNet(
        {
            "block_out_channels": [32, 32, 64],
            "attention_head_dim": 2,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 2,
            "norm_num_groups": 8,
            "cross_attention_dim": 16,
            "n_frames": 3,
            "n_temp_heads": 2,
        }
    )
    sample, first = torch.randn(1, 4, 2, height, width), torch.randn(1, 4, 1, height, width)
    out = unet(sample, 500, torch.randn(1, 5, 16), first, 3)
    assert out.shape == sample.shape and bool(out.isfinite().all())


def test_input_the_original_would_mix_up_is_refused(golden: Path) -> None:
    unet, (inputs, _) = load_unet(golden, "A"), load_case(golden, "A", "a1")
    with pytest.raises(UserError, match="takes 8 frames"):
        unet(**{**inputs, "sample": inputs["sample"][:, :, :3]})
    with pytest.raises(UserError, match="timestep must be one number"):
        unet(**{**inputs, "timestep": torch.tensor([501, 501])})
    with pytest.raises(UserError, match="frame_stride is missing"):
        unet(**{**inputs, "frame_stride": None})
    with pytest.raises(UserError, match="first_frame_latents is missing"):
        unet(**{**inputs, "first_frame_latents": None})


def test_settings_outside_the_published_family_are_refused() -> None:
    with pytest.raises(UserError, match="first_frame_condition_mode='conv2d' is not supported"):
        PublishedUNet({"first_frame_condition_mode": "conv2d"})
