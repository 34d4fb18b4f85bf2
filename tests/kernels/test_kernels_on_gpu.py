"""The benchmark compares like with like: each plain torch formulation says what the kernel's reference says."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from consisti2v_rt.kernels.cuda.sources import SOURCES
from consisti2v_rt.kernels.frame_init import add_noise
from consisti2v_rt.kernels.frames import frames_to_uint8
from consisti2v_rt.kernels.guided_step import guided_step
from consisti2v_rt.kernels.noise import mix_noise
from consisti2v_rt.kernels.temporal_window_attention import rotation_table, temporal_window_attention
from consisti2v_rt.runtime.gpu.device import GpuStatus

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def cases():
    from consisti2v_rt.benchmarks.kernels_on_gpu.cases import cases

    return {case.name: case for case in cases()}


def in_torch(case):
    """The formulation's result and the tensors it may have changed, on the CPU."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in case.arrays.items() if array.dtype != np.uint64}
    return case.in_torch(tensors), {name: tensor.numpy() for name, tensor in tensors.items()}


def test_every_case_fits_its_kernels_arguments(cases):
    assert {case.source for case in cases.values()} == set(SOURCES)
    for case in cases.values():
        for entry_name, numbers in case.launches:
            entry = SOURCES[case.source].entry_point(entry_name)
            taken = {argument.name for argument in entry.arguments}
            arrays = {name: 4096 for name in case.arrays if name in taken}
            assert not entry.call(**arrays | numbers).is_empty
            # The sizes are those of the arrays: no launch reads past one.
            videos_and_elements = numbers.get("videos", 1) * numbers.get("elements", 1)
            assert all(case.arrays[name].size >= videos_and_elements for name in ("state", "normals") if name in arrays)


@pytest.mark.parametrize("name", ["guided step", "guided step, rescale"])
def test_guided_step(cases, name):
    case = cases[name]
    _, tensors = in_torch(case)
    arrays, rescale = case.arrays, case.launches[-1][1]["rescale"]
    expected = guided_step(
        arrays["state"], arrays["predictions"], arrays["weights"][0], arrays["matrices"][0], rescale=rescale
    )
    np.testing.assert_allclose(tensors["state"], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(tensors["rows"], np.stack([tensors["state"][0]] * 2))


def test_frames(cases):
    made, tensors = in_torch(cases["frames_to_uint8"])
    frames, _, area = tensors["decoded"].shape
    expected = frames_to_uint8(tensors["decoded"].reshape(frames, 3, area, 1))
    np.testing.assert_array_equal(made.numpy(), expected.reshape(frames, area, 3))


def test_frame_init(cases):
    numbers = cases["frame_init_difference"].launches[0][1]
    made, tensors = in_torch(cases["frame_init_difference"])
    still, noise = tensors["static_latents"], tensors["noise"]
    expected = add_noise(still, noise, numbers["signal"] ** 2) - noise
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-6)

    _, mixed = in_torch(cases["low_pass_mix"])
    arrays = cases["low_pass_mix"].arrays
    np.testing.assert_allclose(mixed["spectrum"], arrays["spectrum"] * arrays["mask"], rtol=1e-6)

    case = cases["initial_latents"]
    (first, rest), _ = in_torch(case)
    expected = case.arrays["noise"] + case.arrays["correction"] * np.float32(case.launches[0][1]["scale"])
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), expected, rtol=1e-6)


def test_noise(cases):
    case = cases["mix_noise_pyoco_mixed"]
    made, _ = in_torch(case)
    base, independent = case.arrays["base"], case.arrays["independent"]
    expected = mix_noise("pyoco_mixed", base[None, ..., None], independent[None, ..., None], 1.0)
    np.testing.assert_allclose(made.numpy(), expected[0, ..., 0], rtol=1e-5, atol=1e-6)
    _, drawn = in_torch(cases["philox_normal"])
    assert abs(drawn["normals"].std() - 1) < 0.02


def test_attention(cases, relative_l2):
    case = cases["temporal_window_attention, 8×8, head size 160"]
    made, tensors = in_torch(case)
    arrays = (tensors[name] for name in ("query", "key", "value"))
    expected = temporal_window_attention(*arrays, 8, 8, 8, tensors["rotation"])
    assert relative_l2(made.numpy().astype(np.float32), expected) < 2e-3  # rotated and weighted in half precision


@pytest.mark.parametrize("head_size", [40, 160])
def test_the_engines_form_is_the_same_attention(head_size, relative_l2):
    """Its graph in ONNX Runtime, on an odd number of positions to a side."""
    import onnxruntime

    from consisti2v_rt.benchmarks.kernels_on_gpu.engine_attention import attention_graph

    clips, frames, side, heads = 2, 5, 3, 4
    generator = np.random.default_rng(1)
    shape = (clips, frames, side * side, heads * head_size)
    arrays = {name: generator.standard_normal(shape).astype(np.float16) for name in ("query", "key", "value")}
    graph = attention_graph(clips, frames, side, heads, head_size)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, arrays)
    expected = temporal_window_attention(*arrays.values(), heads, side, side, rotation_table(frames, heads * head_size))
    assert relative_l2(made.astype(np.float32), expected) < 2e-3


def test_the_engines_form_is_one_attention_kernel(cases):
    """Built for a card that is not here, at the shipped sizes: an attention that does not fuse does not build."""
    pytest.importorskip("tensorrt_rtx")
    from consisti2v_rt.benchmarks.kernels_on_gpu.engine_attention import build_attention
    from consisti2v_rt.errors import UserError

    graphs = [case.engine for case in cases.values() if case.engine is not None]
    assert len(graphs) == 3
    assert all(len(build_attention(graph, "8.9")) > 1000 for graph in graphs)
    with pytest.raises(UserError, match=r"builds nothing for compute capability 9\.0"):
        build_attention(graphs[0], "9.0")


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    import typer

    program = importlib.import_module("consisti2v_rt.benchmarks.kernels_on_gpu.__main__")
    monkeypatch.setattr(program, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    app = typer.Typer()
    app.command()(program.main)
    done = CliRunner().invoke(app, ["--output", str(tmp_path / "kernels.json")])
    assert done.exit_code == 2
    assert "error: There is no GPU here (no NVIDIA driver is installed): run this on a machine" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_on_a_gpu_every_row_has_times(tmp_path, gpu_machine):
    program = importlib.import_module("consisti2v_rt.benchmarks.kernels_on_gpu.__main__")
    program.main(tmp_path / "kernels.json", rounds=2)
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert len(record["kernels"]) == 11
    assert all(min(row["kernel_us"]) > 0 for row in record["kernels"])
    attentions = [row for row in record["kernels"] if "engine_us" in row]
    assert len(attentions) == 3
    assert all(row["engine_refused"] if row["engine_us"] is None else min(row["engine_us"]) > 0 for row in attentions)
