"""``calibrate``: animate a set with the float32 graphs in few steps and note how large the U-Net's activations are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ...runtime.backends import Backend, Choice
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.graph_source import GraphSource
from ...runtime.bundle.manifest import CalibrationSpec, StageSpec
from ...runtime.bundle.stage_graphs import Availability, has_graphs
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.presets import PUBLISHED
from ...runtime.session import OnnxCpuSession, Session
from .calibration_set import CalibrationSet
from .graph import FLOAT, Graph
from .quantisation import LARGEST as LARGEST_QUANTISED
from .quantisation import observed_inputs, rounded
from .recipe import CALIBRATED_STAGE

LARGEST, VALUES = "/largest", "/values"
"""Ends of the added outputs' names: the largest magnitude, and every so many values."""
_PERIOD = 30
_TO_THE_END = np.iinfo(np.int64).max
_VALUES_IN_ALL, _FEWEST_PER_RUN = 32_768, 64
"""Values that are kept of each activation."""


@dataclass(frozen=True)
class Calibration:
    """What is known of a stage's activations."""

    spec: CalibrationSpec
    ranges: Mapping[str, ActivationRange]
    """By the name of the value in the float32 graph."""


def calibrate(bundle: Bundle, samples: CalibrationSet, on_sample: Callable[[int, int], None]) -> Calibration:
    """Record the inputs of the U-Net's quantised products over whole generations: both branches of guidance, all
    timesteps, latents as they become.

    Args:
        bundle: its float32 graphs are run.
        samples: photos and captions.
        on_sample: number of samples done, of how many.

    Raises:
        UserError: a photo that cannot be read, or a graph that does not load.
    """
    spec = samples.spec
    graph = Graph(bundle.graph(bundle.manifest.stages[CALIBRATED_STAGE], hashed=True))
    quota = max(_VALUES_IN_ALL // (spec.samples * spec.steps), _FEWEST_PER_RUN)
    observed = observe(graph, observed_inputs(graph), quota)
    ranges = {name: ActivationRange() for name in observed.observed}

    def load(bundle: Bundle, stage: str, dims: Mapping[str, int], threads: int | None, precision: str) -> Session:
        stage_spec = bundle.manifest.stages[stage]
        if stage == CALIBRATED_STAGE:
            return ObservedSession(observed, stage_spec, dims, threads, ranges)
        return OnnxCpuSession(bundle.graph(stage_spec, hashed=True), stage_spec, dims, threads, lean=True)

    available = Availability(True, "float32, its activations noted")
    backend = Backend("calibration", "calibration", "cpu", ("fp32",), False, lambda: available, has_graphs, load)
    animate = ImageToVideo(bundle, choice=Choice(backend, "fp32", "calibration"))
    # Guided, whatever the bundle recommends: the ranges have to hold for both branches.
    guidance = PUBLISHED["guidance_scale_txt"]
    for number, (picture, caption) in enumerate(samples.pictures()):
        on_sample(number, spec.samples)
        animate(picture, caption, num_inference_steps=spec.steps, seed=number, guidance_scale_txt=guidance)
    return Calibration(spec, ranges)


@dataclass(frozen=True)
class ObservedGraph:
    """A graph with outputs for what is observed."""

    source: GraphSource
    observed: tuple[str, ...]
    """Activations, by name."""
    quota: int
    """Values to keep of each run, :func:`thinned`; the graph gives up to 30 times as many."""


def observe(graph: Graph, observed: Sequence[str], quota: int) -> ObservedGraph:
    """`graph` with two outputs more for each activation: its largest magnitude, and some of its values.

    Only these leave the graph, so that the memory is that of the graph itself. Values are taken at a stride that the
    graph works out of the size it finds: 30 n + 1, which has no factor in common with numbers of channels, frames or
    positions, so that every channel is met.

    Args:
        graph: as exported; it is not changed.
        observed: names of its values.
        quota: values to keep of each.
    """
    model = ir.from_proto(onnx.load_model_from_string(graph.source.model))
    body = model.graph
    first, values = body[0], {value.name: value for node in body for value in node.outputs}
    values |= {value.name: value for value in body.inputs}

    def constant(name: str, number: int) -> ir.Value:
        tensor = ir.tensor(np.array([number], np.int64), name=f"/observe/{name}")
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        body.register_initializer(value)
        return value

    flat, zero, end, one = constant("flat", -1), constant("zero", 0), constant("end", _TO_THE_END), constant("one", 1)
    period, wanted = constant("period", _PERIOD), constant("wanted", _PERIOD * quota)
    for name in observed:
        nodes: list[ir.Node] = []

        def op(kind: str, inputs: Sequence[ir.Value], output: str, **attributes: int) -> ir.Value:
            nodes.append(ir.node(kind, inputs, attributes, outputs=[ir.Value(name=output)]))  # noqa: B023
            return nodes[-1].outputs[0]  # noqa: B023

        size = op("Abs", [values[name]], f"{name}/magnitude")
        largest = op("ReduceMax", [size], name + LARGEST, keepdims=0)
        line = op("Reshape", [values[name], flat], f"{name}/line")
        periods = op("Div", [op("Shape", [line], f"{name}/count"), wanted], f"{name}/periods")
        stride = op("Add", [op("Mul", [periods, period], f"{name}/steps"), one], f"{name}/stride")
        taken = op("Slice", [line, zero, end, zero, stride], name + VALUES)
        largest.type = taken.type = ir.TensorType(FLOAT)
        largest.shape, taken.shape = ir.Shape([]), ir.Shape([None])
        body.outputs.extend([largest, taken])
        # Right behind what they look at, or every activation would be kept to the end (see ObservedSession).
        producer = values[name].producer()
        if producer is None:
            body.insert_before(first, nodes)
        else:
            body.insert_after(producer, nodes)
    return ObservedGraph(graph.source.with_model(ir.to_proto(model).SerializeToString()), tuple(observed), quota)


def thinned(values: NDArray[np.float32], quota: int) -> NDArray[np.float32]:
    """At most `quota` values of a line, evenly spread."""
    if len(values) <= quota:
        return values
    return values[np.linspace(0, len(values) - 1, quota).astype(np.int64)]


class ObservedSession(OnnxCpuSession):
    """One stage, whose activations are noted by every run.

    Args:
        graph: with its additional outputs.
        stage: the outputs that the pipeline wants.
        dims: sizes of dynamic dimensions.
        threads: None: one per physical core.
        ranges: activation -> what is known of it.
    """

    def __init__(
        self,
        graph: ObservedGraph,
        stage: StageSpec,
        dims: Mapping[str, int],
        threads: int | None,
        ranges: dict[str, ActivationRange],
    ) -> None:
        self._graph, self._ranges = graph, ranges
        super().__init__(graph.source, stage, dims, threads, lean=True)

    def _check_names(self, file_name: str, stage: StageSpec) -> None:
        """It has more outputs than the manifest says."""

    def allocate(self, dims: Mapping[str, int]) -> None:
        super().allocate(dims)
        for name in self._graph.observed:
            self._binding.bind_output(name + LARGEST, "cpu")
            self._binding.bind_output(name + VALUES, "cpu")

    def run(self) -> None:
        super().run()
        noted = iter(self._binding.get_outputs()[len(self.outputs) :])
        for name in self._graph.observed:
            largest, values = next(noted).numpy(), next(noted).numpy()
            self._ranges[name].add(float(largest), thinned(values, self._graph.quota))


Values = NDArray[np.float32]

# Shares of the largest magnitude that may be where clipping begins.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)


@dataclass(frozen=True)
class ActivationScale:
    """How an activation becomes 8 bits."""

    scale: float
    """A float16 number: one step for INT8."""
    loss: float
    """Relative L2 of the values that were kept, there and back."""


class ActivationRange:
    """The largest magnitude of an activation over all runs, and some of its values from each."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._parts: list[Values] = []

    def add(self, largest: float, values: Values) -> None:
        """What one run told; a value that is not finite makes the range useless, and :meth:`scale` says so."""
        self.largest = max(self.largest, float(largest)) if np.isfinite(largest) else float("inf")
        self._parts.append(np.array(values, np.float32))

    @property
    def values(self) -> Values:
        return np.concatenate(self._parts)

    def scale(self, elem_type: int) -> ActivationScale:
        """The scale of least squared error: the few largest values are clipped where that helps all others.

        As in Banner et al. (2019), arXiv:1810.05723, but on the values themselves instead of a fitted distribution.

        Args:
            elem_type: ONNX type, INT8 or FLOAT8E4M3FN.

        Raises:
            OverflowError: a value was not finite.
        """
        if not np.isfinite(self.largest):
            raise OverflowError("an activation is not finite in float32")
        values = self.values
        power = float(np.sum(np.square(values, dtype=np.float64))) or 1.0
        found = {scale: _error(values, scale, elem_type) for scale in self._candidates(elem_type)}
        best = min(found, key=lambda scale: found[scale])
        return ActivationScale(best, float(np.sqrt(found[best] / power)))

    def _candidates(self, elem_type: int) -> list[float]:
        tiny = float(np.finfo(np.float16).tiny)
        scales = [max(self.largest * share / LARGEST_QUANTISED[ir.DataType(elem_type)], tiny) for share in _SHARES]
        return [float(np.float16(min(scale, 65504.0))) for scale in scales]


def _error(values: Values, scale: float, elem_type: int) -> float:
    back = rounded(values / np.float32(scale), ir.DataType(elem_type)).astype(np.float32) * np.float32(scale)
    return float(np.sum(np.square(back - values, dtype=np.float64)))
