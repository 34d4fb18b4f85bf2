"""The parts of a calibration: what leaves an observed graph, the scale that loses least, how many changes are kept."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from consisti2v_rt.export.precision import variant
from consisti2v_rt.export.precision.calibration import ActivationRange, Calibration, observe, thinned
from consisti2v_rt.export.precision.graph import Graph
from consisti2v_rt.export.precision.recipe import Recipe

INT8, FP8 = TensorProto.INT8, TensorProto.FLOAT8E4M3FN


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_every_channel_is_met_whatever_the_size(tmp_path, rows):
    """A value of dynamic size, 320 channels: few values leave the graph, of all channels, the largest is exact."""
    import onnxruntime

    shape = ["rows", 16, 64, 320]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save_model(model, str(tmp_path / "g.onnx"))
    observed = observe(Graph(tmp_path / "g.onnx"), ["x"], 1000)
    x = np.broadcast_to(np.arange(320, dtype=np.float32), (rows, 16, 64, 320)).copy()
    x[-1, 3, 5, 7] = -5000
    session = onnxruntime.InferenceSession(observed.source.model, providers=["CPUExecutionProvider"])
    _, largest, taken = session.run(None, {"x": x})
    assert largest == 5000 and len(taken) < 31_000
    kept = thinned(taken, observed.quota)
    assert len(kept) == 1000
    assert len(set(kept) - {-5000.0}) > 300


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, onnx
from onnx import TensorProto, helper
from consisti2v_rt.export.precision.calibration import ActivationRange, ObservedSession, observe
from consisti2v_rt.export.precision.graph import Graph
from consisti2v_rt.runtime.bundle.manifest import StageSpec, TensorSpec

path, shape, names = Path(sys.argv[1]), [8_000_000], ["x", *(f"a{i}" for i in range(24))]
info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
nodes = [helper.make_node("Sin", [before], [after]) for before, after in zip(names, names[1:])]
graph = helper.make_graph(nodes, "chain", info[:1], info[-1:], value_info=info[1:-1])
onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), str(path))
specs = [(TensorSpec(name, "float32", tuple(shape)),) for name in (names[0], names[-1])]
ranges = {name: ActivationRange() for name in names[1:-1]}
session = ObservedSession(
    observe(Graph(path), names[1:-1], 100), StageSpec("", "fp32", *specs, 23), {}, 1, ranges
)
session.inputs["x"][...] = 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session.run()
assert all(found.largest > 0.1 and len(found.values) == 100 for found in ranges.values())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_activations_are_not_kept_until_the_end(tmp_path):
    """22 observed activations of 31 MiB: a few live at a time."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "chain.onnx")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 7 * 31, "MiB"


@pytest.mark.parametrize(("kind", "expected"), [(INT8, 0.042), (FP8, 0.03)])
def test_a_few_outliers_are_clipped_where_that_helps(kind, expected):
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    plain, spiked = ActivationRange(), ActivationRange()
    plain.add(np.abs(values).max(), values)
    values = values.copy()
    values[0] = 20
    spiked.add(20, values)
    assert spiked.scale(kind).loss < expected
    if kind == INT8:
        # Between the bulk of the values, which end near 4.5, and the outlier; unclipped it would be 0.046.
        assert 5 < 127 * spiked.scale(kind).scale < 15 and 3 < 127 * plain.scale(kind).scale < 5


def test_nothing_and_infinity_are_ranges_too():
    silent, broken = ActivationRange(), ActivationRange()
    silent.add(0.0, np.zeros(10, np.float32))
    assert silent.scale(INT8).scale > 0 and silent.scale(INT8).loss == 0
    broken.add(float("nan"), np.zeros(10, np.float32))
    with pytest.raises(OverflowError):
        broken.scale(INT8)


@pytest.mark.parametrize(("limit", "expected"), [(None, 100), (100, 100), (40, 40), (39.5, 39), (0, 0), (-1, 0)])
def test_as_many_as_the_limit_allows(limit, expected):
    """Each activation costs 1 here; the last graph written is the one that stays."""
    made: list[int] = []

    def attempt(scales):
        made.append(len(scales))
        return SimpleNamespace(losses=[SimpleNamespace(relative_l2=len(scales))])

    values = ActivationRange()
    values.add(4.0, np.linspace(-4, 4, 100, dtype=np.float32))
    calibration = Calibration(None, {f"a{number}": values for number in range(100)})
    result, record = variant._attempt_calibrated(attempt, calibration, Recipe("int8", 10, INT8, limit))
    assert record["quantised"] == result.losses[0].relative_l2 == made[-1] and len(made) <= 8
    assert made[-1] <= expected and expected - made[-1] <= 2
