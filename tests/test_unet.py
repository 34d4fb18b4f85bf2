"""The efficient U-Net against the published model: golden outputs, keys, cost, gates, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from consisti2v_rt import UserError  # noqa: E402
from consisti2v_rt.export.unet import VideoUNet  # noqa: E402
from consisti2v_rt.export.unet.attention import window_indices  # noqa: E402
from consisti2v_rt.export.unet.resampling import Upsample  # noqa: E402

CASES = [("A", f"a{i}") for i in range(6)] + [("A", "quirk_textlen8"), ("D", "d0"), ("D", "d1")]


def load(golden: Path, config: str, dtype=torch.float32, prepare: bool = True) -> VideoUNet:
    unet = VideoUNet.from_config(json.loads((golden / config / "config.json").read_text()))
    unet.load_state_dict(load_file(golden / config / "weights.safetensors"))
    return (unet.prepare_for_inference() if prepare else unet).to(dtype)


def call(unet: VideoUNet, io: dict, case: str, dtype=torch.float32):
    with torch.no_grad():
        return unet(
            io[f"{case}.sample"].to(dtype),
            io[f"{case}.timestep"],
            io[f"{case}.encoder_hidden_states"].to(dtype),
            first_frame_latents=io[f"{case}.first_frame_latents"].to(dtype),
            frame_stride=io[f"{case}.frame_stride"],
        )


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [False, True], ids=["as-loaded", "gates-folded"])
@pytest.mark.parametrize(("config", "case"), CASES)
def test_golden_parity(golden, relative_l2, config, case, prepare):
    io = load_file(golden / config / "io.safetensors")
    out = call(load(golden, config, prepare=prepare), io, case)
    assert relative_l2(out, io[f"{case}.output"]) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize(("config", "case"), CASES)
def test_golden_parity_float64(golden, relative_l2, config, case):
    """What is left is the golden data's own float32 rounding, about 1e-6."""
    io = load_file(golden / config / "io.safetensors")
    out = call(load(golden, config, torch.float64), io, case, torch.float64)
    assert relative_l2(out, io[f"{case}.output"]) < 1.3e-6


@pytest.fixture(scope="module")
def full_on_meta() -> VideoUNet:
    with torch.device("meta"):
        return VideoUNet.from_config({})


def test_state_dict_has_the_published_keys_and_shapes(full_on_meta, golden_json):
    published = golden_json("keys_full.json")
    own = {key: list(value.shape) for key, value in full_on_meta.state_dict().items()}
    assert own == {key: shape for key, (shape, _) in published.items()}


@pytest.mark.slow
def test_cost_at_full_size(full_on_meta):
    """Published: 10.879 TFLOP at batch 2."""
    from torch.utils.flop_counter import FlopCounterMode

    def meta(*shape):
        return torch.empty(*shape, device="meta")

    one = torch.ones(1, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        full_on_meta(
            meta(2, 4, 15, 32, 32),
            one,
            meta(2, 77, 1024),
            first_frame_latents=meta(2, 4, 1, 32, 32),
            frame_stride=one,
        )
    assert counter.get_total_flops() <= 8.35e12


def test_preparing_keeps_the_state_dict_a_published_one(golden, relative_l2):
    """Folded weights, loaded again as if published, give the same function."""
    io = load_file(golden / "A" / "io.safetensors")
    folded = load(golden, "A")
    again = VideoUNet(folded.config)
    again.load_state_dict(folded.state_dict())
    assert relative_l2(call(again, io, "a0"), io["a0.output"]) < 5e-6


def test_closed_gates_drop_their_layers(golden):
    weights = load_file(golden / "A" / "weights.safetensors")
    for key in weights:
        if key.endswith(".alpha"):
            weights[key] = torch.full((1,), 1.7)  # outside [0, 1]: clamped, as published
    config = json.loads((golden / "A" / "config.json").read_text())
    io = load_file(golden / "A" / "io.safetensors")
    closed = VideoUNet.from_config(config)
    closed.load_state_dict(weights)
    reference = call(closed, io, "a0")
    closed.prepare_for_inference()
    assert not any("tempo_attns" in path for path in closed.text_attentions())
    spatial = VideoUNet.from_config({**config, "use_temporal": False})
    spatial.load_state_dict({k: v for k, v in weights.items() if "conv3ds" not in k and "tempo_attns" not in k})
    assert torch.equal(call(closed, io, "a0"), call(spatial, io, "a0"))
    assert torch.equal(call(closed, io, "a0"), reference)


def test_one_frame_moves_the_others(golden):
    io = load_file(golden / "A" / "io.safetensors")
    unet = load(golden, "A")
    before = call(unet, io, "a0")
    io["a0.sample"][:, :, 3] += 1.0
    moved = (call(unet, io, "a0") - before).abs().amax(dim=(0, 1, 3, 4))
    assert (moved > 1e-4).all()


def test_dead_keys_may_be_absent_others_may_not(golden):
    weights = load_file(golden / "A" / "weights.safetensors")
    unet = VideoUNet.from_config(json.loads((golden / "A" / "config.json").read_text()))
    live = {k: v for k, v in weights.items() if "rotary_bias" not in k and "conv3ds.0.time_emb_proj" not in k}
    unet.load_state_dict(live)
    with pytest.raises(UserError, match=r"missing keys conv_in\.weight"):
        unet.load_state_dict({k: v for k, v in weights.items() if k != "conv_in.weight"})
    with pytest.raises(UserError, match=r"unknown keys surplus\.weight"):
        unet.load_state_dict({**weights, "surplus.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"conv_in\.bias \[3\] instead of \[32\]"):
        unet.load_state_dict({**weights, "conv_in.bias": torch.zeros(3)})


def test_wrong_frame_counts_are_refused(golden):
    """The published model runs silently on both and mixes clips."""
    unet = load(golden, "A")
    text = torch.zeros(2, 77, 32)
    for batch, frames in ((1, 16), (2, 4)):
        sample = torch.zeros(batch, 4, frames - 1, 16, 16)
        with pytest.raises(ValueError, match="8 frames with the first"):
            unet(sample, 1, text[:batch], first_frame_latents=sample[:, :, :1], frame_stride=3)
    sample = torch.zeros(1, 4, 7, 16, 16)
    with pytest.raises(ValueError, match="one text per clip"):
        unet(sample, 1, text, first_frame_latents=sample[:, :, :1], frame_stride=3)
    with pytest.raises(ValueError, match="3 timesteps"):
        unet(sample, torch.ones(3), text[:1], first_frame_latents=sample[:, :, :1], frame_stride=3)
    with pytest.raises(ValueError, match="frame_stride is missing"):
        unet(sample, 1, text[:1], first_frame_latents=sample[:, :, :1])
    with pytest.raises(ValueError, match="first_frame_latents is missing"):
        unet(sample, 1, text[:1], frame_stride=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported"),
        ({"first_frame_condition_mode": "conv2d"}, "first_frame_condition_mode='conv2d'"),
        ({"class_embed_type": "timestep"}, "class_embed_type'='timestep' is unknown"),
        ({"block_out_channels": [48, 96]}, "temporal layers"),
        ({"n_frames": 1}, "at least 2 frames"),
        ({"temp_pos_embedding": "learned"}, "'rotary' or 'sinusoidal'"),
        ({"attention_head_dim": [2, 4, 8]}, "one per level"),
        ({"n_temp_heads": 5}, "temporal attention heads"),
    ],
)
def test_configurations_that_would_change_results_are_refused(golden_json, change, message):
    with pytest.raises(UserError, match=message):
        VideoUNet.from_config({**golden_json("A/config.json"), **change})


def test_options_that_are_off_are_accepted(golden_json):
    VideoUNet.from_config({**golden_json("A/config.json"), "class_embed_type": None, "_diffusers_version": "0.21.2"})


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 4)])
def test_phase_convolutions_equal_nearest_then_convolution(size):
    torch.manual_seed(0)
    upsample = Upsample(6).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    doubled = (2 * size[0], 2 * size[1])
    expected = upsample.conv(torch.nn.functional.interpolate(x, size=doubled, mode="nearest"))
    assert torch.allclose(upsample(x, doubled), expected, atol=1e-12)


def test_window_replicates_the_border():
    """Against the definition: 3x3 neighbours of a padded map, row-major, without the centre."""
    height, width = 3, 5
    grid = torch.arange(height * width).reshape(1, 1, height, width).double()
    padded = torch.nn.functional.pad(grid, (1, 1, 1, 1), mode="replicate")
    patches = torch.nn.functional.unfold(padded, 3)[0]
    expected = torch.cat([patches[:4], patches[5:]]).long().flatten()
    assert torch.equal(window_indices(height, width), expected)
