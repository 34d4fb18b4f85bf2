"""Temporal self-attention with the first-frame window: the reference against the model's own layer, the CUDA kernel
against the reference.
"""

from __future__ import annotations

import numpy as np
import pytest

from consisti2v_rt.kernels.cuda.sources import HEAD_SIZES
from consisti2v_rt.kernels.temporal_window import rotation_table, window_positions
from consisti2v_rt.tests.kernels.references.temporal_window_attention import temporal_window_attention

TOLERANCE = {"f32": 2e-6, "f16": 6e-4, "bf16": 5e-3}  # the reference is float32: half of an output's last digit


def launch(machine, kind, head_size, query, key, value, heads, height, width, rotation, window=True):
    clips, frames = query.shape[:2]
    (out,) = machine.run(
        f"temporal_window_attention_d{head_size}_{kind}", ("out",), query=query, key=key, value=value,
        rotation=rotation, out=np.full_like(query, 77), scale=head_size**-0.5, clips=clips, frames=frames,
        height=height, width=width, heads=heads, window=int(window),
    )  # fmt: skip
    return out.astype(np.float32)


def tokens(normal, kind, element_types, clips, frames, height, width, channels):
    return [normal(clips, frames, height * width, channels).astype(element_types[kind]) for _ in range(3)]


@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize(("heads", "frames", "height", "width"), [(8, 16, 4, 6), (4, 5, 1, 3), (2, 1, 1, 1)])
def test_the_reference_is_the_models_layer(normal, relative_l2, heads, frames, height, width, window):
    torch = pytest.importorskip("torch")
    from consisti2v_rt.export.unet.attention import WindowedTemporalAttention
    from consisti2v_rt.export.unet.positions import RotaryPositions

    channels = heads * 8
    layer = WindowedTemporalAttention(channels, heads, RotaryPositions(channels), window).double()
    identity = torch.eye(channels, dtype=torch.float64)
    with torch.no_grad():
        layer.to_out[0].weight.copy_(identity)
        layer.to_out[0].bias.zero_()
        x = torch.from_numpy(normal(2, frames, height * width, channels)).double()
        expected = layer(x, height, width).numpy()
        projected = [linear(x).float().numpy() for linear in (layer.to_q, layer.to_k, layer.to_v)]
    rotation = rotation_table(frames, channels)
    out = temporal_window_attention(*projected, heads, height, width, rotation, window)
    assert out.dtype == np.float32
    assert relative_l2(out, expected) < 2e-6


def test_the_window_of_a_corner_and_of_the_middle():
    positions = window_positions(3, 4)
    assert positions[:, 0].tolist() == [0, 0, 1, 0, 1, 4, 4, 5]
    assert positions[:, 5].tolist() == [0, 1, 2, 4, 6, 8, 9, 10]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_the_shipped_shape(machine, normal, element_types, relative_l2, kind, head_size):
    """16 queries over 24 keys; two heads, of which the first is rotated."""
    arrays = tokens(normal, kind, element_types, 2, 16, 2, 3, 2 * head_size)
    rotation = rotation_table(16, 2 * head_size)
    out = launch(machine, kind, head_size, *arrays, 2, 2, 3, rotation)
    expected = temporal_window_attention(*arrays, 2, 2, 3, rotation)
    assert relative_l2(out, expected) < TOLERANCE[kind]
    assert relative_l2(out, temporal_window_attention(*arrays, 2, 2, 3, None)) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 17, 24, 25, 32])
def test_any_number_of_frames(machine, normal, element_types, relative_l2, frames, window):
    """Up to 40 keys, in one tile or two; threads that fill up the last warp."""
    arrays = tokens(normal, "f32", element_types, 1, frames, 1, 2, 80)
    rotation = rotation_table(frames, 80)
    out = launch(machine, "f32", 40, *arrays, 2, 1, 2, rotation, window)
    assert relative_l2(out, temporal_window_attention(*arrays, 2, 1, 2, rotation, window)) < TOLERANCE["f32"]


@pytest.mark.parametrize(("height", "width", "heads"), [(1, 1, 1), (1, 7, 3), (5, 1, 1), (3, 4, 2)])
def test_odd_sizes_and_heads(machine, normal, element_types, relative_l2, height, width, heads):
    """With an odd number of heads half of one is rotated."""
    arrays = tokens(normal, "f32", element_types, 1, 3, height, width, 40 * heads)
    rotation = rotation_table(3, 40 * heads)
    out = launch(machine, "f32", 40, *arrays, heads, height, width, rotation)
    assert relative_l2(out, temporal_window_attention(*arrays, heads, height, width, rotation)) < TOLERANCE["f32"]


def test_without_rotary_positions(machine, normal, element_types, relative_l2):
    arrays = tokens(normal, "f32", element_types, 1, 4, 2, 2, 160)
    out = launch(machine, "f32", 80, *arrays, 2, 2, 2, None)
    assert relative_l2(out, temporal_window_attention(*arrays, 2, 2, 2, None)) < TOLERANCE["f32"]


@pytest.mark.parametrize(("clips", "frames", "height"), [(0, 3, 2), (1, 0, 2), (1, 3, 0)])
def test_empty_sizes(machine, normal, element_types, clips, frames, height):
    arrays = tokens(normal, "f32", element_types, clips, frames, height, 2, 40)
    assert launch(machine, "f32", 40, *arrays, 1, height, 2, rotation_table(frames, 40)).size == 0


def test_large_scores_do_not_overflow(machine, normal, element_types, relative_l2):
    """Scores of thousands: softmax picks one key, whatever the order in which the maximum is found."""
    query, key, value = tokens(normal, "f32", element_types, 1, 16, 1, 2, 40)
    query *= 300
    rotation = rotation_table(16, 40)
    out = launch(machine, "f32", 40, query, key, value, 1, 1, 2, rotation)
    assert np.isfinite(out).all()
    assert relative_l2(out, temporal_window_attention(query, key, value, 1, 1, 2, rotation)) < 1e-4


def test_half_precision_inputs_near_their_limit(machine, element_types):
    """Products of 60000 x 60000 are far outside half precision; the sums are float32."""
    dtype = element_types["f16"]
    query = np.full((1, 2, 1, 40), 60000, dtype)
    value = np.full((1, 2, 1, 40), 65504, dtype)
    out = launch(machine, "f16", 40, query, query, value, 1, 1, 1, None)
    assert (out == 65504).all()


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_special_values_reach_only_what_attends_to_them(machine, normal, element_types, special):
    query, key, value = tokens(normal, "f32", element_types, 1, 4, 1, 4, 40)
    value[0, 2, 3, 5] = special  # frame 2 is in nobody's window
    query[0, 1, 0, 39] = special
    with np.errstate(all="ignore"):
        expected = temporal_window_attention(query, key, value, 1, 1, 4, None)
    out = launch(machine, "f32", 40, query, key, value, 1, 1, 4, None)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(out[0, :, 1:3]).all() and not np.isfinite(out[0, :, 3, 5]).any()
