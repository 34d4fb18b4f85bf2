"""The layers before the text, once for all guidance branches whose latents agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consisti2v_rt.errors import CancelledError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.openvino import backend
from consisti2v_rt.runtime.openvino.session import OpenVinoSession, WholeGraph
from consisti2v_rt.runtime.openvino.shared_prefix import TEXTLESS_INPUTS, SharedPrefixGraph, cut_before_text, same_cut
from consisti2v_rt.runtime.session import OnnxCpuSession

pytest.importorskip("openvino")

DIMS = {"rows": 3, "latent_height": 8, "latent_width": 8, "height": 64, "width": 64}


class Counted:
    """An inference request that counts its runs."""

    def __init__(self, request: Any) -> None:
        self._request, self.runs = request, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def infer(self, **options: Any) -> None:
        self.runs += 1
        self._request.infer(**options)


@pytest.fixture(scope="module")
def sessions(dynamic_bundle) -> tuple[OpenVinoSession, OnnxCpuSession]:
    bundle = Bundle.open(dynamic_bundle)
    spec = bundle.manifest.stages["unet"]
    ours = backend.load(bundle, "unet", DIMS, None, "fp32")
    return ours, OnnxCpuSession(bundle.file(spec.file), spec, DIMS)


def fill(session: OpenVinoSession, exact: OnnxCpuSession, agree: bool, seed: int = 5) -> None:
    generator = np.random.default_rng(seed)
    for name, array in session.inputs.items():
        if array.dtype == np.int64:
            array[...] = 7
        else:
            array[...] = generator.standard_normal(array.shape, np.float32)
            if agree and name in TEXTLESS_INPUTS:
                array[...] = array[:1]
        exact.inputs[name][...] = array


@pytest.mark.slow
def test_rows_that_agree_share_the_prefix_and_others_do_not(sessions, relative_l2):
    ours, exact = sessions
    graph = ours._graph
    assert isinstance(graph, SharedPrefixGraph)
    graph._one = Counted(graph._one)
    for agree, runs in ((True, 1), (False, 1), (True, 2)):
        fill(ours, exact, agree, seed=runs)
        ours.run()
        exact.run()
        assert graph._one.runs == runs
        assert relative_l2(ours.outputs["noise_pred"], exact.outputs["noise_pred"]) < 2e-5


def test_one_row_that_differs_is_seen(sessions, relative_l2):
    ours, exact = sessions
    for name in ("sample", "first_frame_latents"):
        fill(ours, exact, agree=True)
        ours.run()
        ours.inputs[name][2, 0, 0, 0, 0] += 1
        exact.inputs[name][...] = ours.inputs[name]
        ours.run()
        exact.run()
        assert relative_l2(ours.outputs["noise_pred"], exact.outputs["noise_pred"]) < 2e-5


def test_bound_arrays_are_read_in_place_by_both_parts(sessions, relative_l2):
    ours, exact = sessions
    fill(ours, exact, agree=True)
    own = {name: array.copy() for name, array in ours.inputs.items()}
    for name, array in own.items():
        ours.bind_input(name, array)
    for change in (0.0, 0.5):
        for name in ("sample", "down_blocks.0.attentions.0.key"):
            own[name] += np.float32(change)
            exact.inputs[name][...] = own[name]
        ours.run()
        exact.run()
        assert relative_l2(ours.outputs["noise_pred"], exact.outputs["noise_pred"]) < 2e-5


def test_a_cancelled_run_ends_between_the_parts(sessions):
    ours, exact = sessions
    fill(ours, exact, agree=True)
    ours.run()
    before = ours.outputs["noise_pred"].copy()
    fill(ours, exact, agree=True, seed=6)
    graph = ours._graph
    one = graph._one

    class Cancelling(Counted):
        def infer(self, **options: Any) -> None:
            super().infer(**options)
            ours.cancel()

    graph._one = Cancelling(one)
    with pytest.raises(CancelledError):
        ours.run()
    graph._one = one
    assert np.array_equal(ours.outputs["noise_pred"], before)
    ours.resume()
    ours.run()
    assert not np.array_equal(ours.outputs["noise_pred"], before)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one row", "fixed batch", "no text"])
def test_other_graphs_stay_whole(dynamic_bundle, tiny_bundle, case):
    bundle = Bundle.open(tiny_bundle if case == "fixed batch" else dynamic_bundle)
    stage = "vae_decoder" if case == "no text" else "unet"
    session = backend.load(bundle, stage, {**DIMS, "frames": 1, "rows": 1 if case == "one row" else 2}, None, "fp32")
    assert isinstance(session._graph, WholeGraph)


def test_a_scalar_is_handed_over_whole():
    """Asked for a size of a scalar, OpenVINO ends the process."""
    import openvino
    from openvino import opset13 as op

    def cut(rows: int) -> Any:
        sample, text = (op.parameter([rows, 2], np.float32, name=name) for name in ("sample", "text"))
        for parameter in (sample, text):
            parameter.output(0).set_names({parameter.get_friendly_name()})
        product = op.matmul(sample, op.constant(np.eye(2, dtype=np.float32)), False, False)
        zero, last = op.constant(np.int64(0)), op.constant(np.int64(1))
        width = op.gather(op.convert(op.shape_of(sample), np.float32), last, zero)
        for name, node in (("product", product), ("width", width)):
            node.set_friendly_name(name)
        result = op.add(op.multiply(text, width), product)
        result.output(0).set_names({"noise_pred"})
        return cut_before_text(openvino.Model([op.result(result)], [sample, text], "model"), {"sample"})

    one, both = cut(1), cut(2)
    assert same_cut(one, both, 2)
    core = openvino.Core()
    graph = SharedPrefixGraph(one, both, lambda model: core.compile_model(model, "CPU").create_infer_request())
    sample, text = np.ones((2, 2), np.float32), np.array([[1, 2], [3, 4]], np.float32)
    found = np.zeros((2, 2), np.float32)
    for name, array in {"sample": sample, "text": text, "noise_pred": found}.items():
        graph.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    for step in graph.steps():
        step()
    assert found.tolist() == [[3, 5], [7, 9]]
