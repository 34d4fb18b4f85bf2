"""One ONNX graph becomes one plan: parse, settle the attentions, set sizes and target, build, and keep the facts."""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass
from pathlib import Path, PurePath

from ...errors import UserError
from ...runtime.bundle.graph_source import GraphSource
from ...runtime.bundle.manifest import TensorSpec
from ...runtime.gpu.engine_refit import load_graph
from .api import Builder, BuilderConfig, Network, TensorRT
from .attention import Attentions, settle_attentions
from .host_memory import peak_host_bytes
from .libraries import Flavour, set_target
from .messages import Messages, make_logger, plain_words
from .monitor import OnProgress, make_monitor
from .shapes import EngineShapes
from .targets import Target

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "UINT8": "uint8",
}
_NO_KERNEL = "not supported by a dedicated kernel"
"""What TensorRT for RTX says of an Attention operator that it may not take apart, without its name."""


@dataclass(frozen=True)
class PlanRequest:
    """What is to be built."""

    stage: str
    onnx: GraphSource | Path
    """Of a bundle, or a file with its weights beside it."""
    shapes: EngineShapes
    flavour: Flavour
    target: Target
    stripped: bool = False


@dataclass(frozen=True)
class Plan:
    """What is known about a built engine without a GPU."""

    version: str
    """Of the library."""
    plan_bytes: int
    layers: dict[str, int]
    """Kinds of the parsed network's layers, most frequent first."""
    attentions: Attentions
    seconds: float
    peak_host_bytes: int | None
    activation_bytes: tuple[int, ...]
    """Device memory of one context, for each profile."""
    weight_bytes: int | None
    warnings: tuple[str, ...]


def build_plan(library: TensorRT, request: PlanRequest, path: Path, on_progress: OnProgress) -> Plan:
    """Build a plan into the file `path`.

    Raises:
        UserError: the graph does not parse, is not what the manifest says, or does not build; the builder's own first
            error is in the sentence.
        OSError: the file cannot be written.
    """
    started, messages = time.perf_counter(), Messages()
    logger = make_logger(library, messages)
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    weights = load_graph(parser, GraphSource.of(request.onnx))
    if weights is None or not parser.parse_model_proto():
        reason = parser.get_error(0).desc() if parser.num_errors else messages.reason()
        raise UserError(
            f"{request.flavour.title} cannot read {PurePath(request.onnx.name).name} ({plain_words(reason)})."
        )
    _check_tensors(network, request)
    # First: a size that the graph leaves open and the engine has fixed decides what fuses.
    _set_shapes(network, request.shapes)
    attentions = settle_attentions(library, network, request.shapes.smallest_batch)
    config = _configure(library, builder, network, request)
    config.progress_monitor = make_monitor(library, on_progress)
    layers = collections.Counter(network.get_layer(i).type.name.lower() for i in range(network.num_layers))
    data = builder.build_serialized_network(network, config)
    # Some failures are only logged; the builder then hands out a plan of something else, or nothing.
    if data is None or messages.errors:
        raise UserError(_failure(library, request, messages, attentions))
    # Both take the weights from there until now.
    del parser, network, weights
    seconds = time.perf_counter() - started
    path.write_bytes(memoryview(data))  # type: ignore[arg-type]
    return Plan(
        library.__version__,
        data.nbytes,
        dict(layers.most_common()),
        attentions,
        seconds,
        peak_host_bytes(),
        tuple(messages.activation_bytes),
        messages.weight_bytes,
        tuple(dict.fromkeys(messages.warnings)),
    )


def _set_shapes(network: Network, shapes: EngineShapes) -> None:
    by_name = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    for spec in shapes.inputs:
        by_name[spec.name].shape = [size if isinstance(size, int) else -1 for size in spec.shape]


def _configure(library: TensorRT, builder: Builder, network: Network, request: PlanRequest) -> BuilderConfig:
    config = builder.create_builder_config()
    set_target(library, config, request.flavour, request.target)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    # On by default, and float32 with ten bits of mantissa is not float32.
    config.clear_flag(library.BuilderFlag.TF32)
    if hasattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT for RTX: no memory is asked for while a step runs, which its capture as a graph needs.
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if request.stripped:
        # Refittable with any weights, so that a newly trained checkpoint needs no new engine.
        config.set_flag(library.BuilderFlag.REFIT)
        config.set_flag(library.BuilderFlag.STRIP_PLAN)
    for profile_spec in request.shapes.profiles:
        profile = builder.create_optimization_profile()
        for name, sizes in profile_spec.inputs.items():
            profile.set_shape(name, sizes.minimum, sizes.optimum, sizes.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise UserError(f"stage {request.stage}: the builder takes no profile of {profile_spec.inputs}.")
    return config


def _check_tensors(network: Network, request: PlanRequest) -> None:
    """The manifest describes this graph: names and types, in its own words."""
    for count, get, specs in (
        (network.num_inputs, network.get_input, request.shapes.inputs),
        (network.num_outputs, network.get_output, request.shapes.outputs),
    ):
        tensors = [get(i) for i in range(count)]
        found = {tensor.name: _DTYPES.get(tensor.dtype.name, tensor.dtype.name) for tensor in tensors}
        if found != _types(specs):
            raise UserError(
                f"{PurePath(request.onnx.name).name} has other tensors than the manifest says: export the bundle again."
            )


def _types(specs: tuple[TensorSpec, ...]) -> dict[str, str]:
    return {spec.name: spec.dtype for spec in specs}


def _failure(library: TensorRT, request: PlanRequest, messages: Messages, attentions: Attentions) -> str:
    blamed = next((name for name in attentions.fused if any(name in error for error in messages.errors)), None)
    if blamed:
        what = f"attention {blamed} has no fused kernel"
    elif any(_NO_KERNEL in error for error in messages.errors):
        what = "one of its attentions has no fused kernel at these sizes"
    else:
        what = plain_words(messages.reason())
    return (
        f"{request.flavour.title} {library.__version__} cannot build stage {request.stage} for {request.target.name} "
        f"({what}): try another --precision or --target."
    )
