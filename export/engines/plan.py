"""One ONNX graph becomes one plan: parse, settle the attentions, set sizes and target, build, and keep the facts."""

from __future__ import annotations

import collections
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from ...errors import UserError
from ...runtime.bundle.graph_source import GraphSource
from ...runtime.gpu.engine_refit import load_graph
from .attention import settle_attentions
from .contents import Contents, read_accumulation, read_product_accumulation
from .libraries import EngineBackend, set_target
from .shapes import EngineShapes
from .targets import Target

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""The library's names of types that are not the manifest's in capitals."""
_NO_KERNEL = "not supported by a dedicated kernel"
"""The message of TensorRT for RTX about an Attention operator that is not decomposable; it does not name it."""
_LINK = re.compile(r"\(?\b(?:(?:see|visit)\s+)?(?:https?://|www\.)\S*", re.IGNORECASE)
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_log = logging.getLogger("consisti2v_rt")


@dataclass(frozen=True)
class PlanRequest:
    """What is to be built."""

    stage: str
    onnx: GraphSource | Path
    """Of a bundle, or a file with its weights beside it."""
    shapes: EngineShapes
    backend: EngineBackend
    target: Target
    stripped: bool = False
    accumulate: str = "auto"
    """What float16 products accumulate in: auto or fp32."""


def build_plan(
    library: Any, request: PlanRequest, path: Path, on_progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Build a plan into the file `path`.

    Args:
        library: tensorrt_rtx or tensorrt.
        request: what to build.
        path: of the plan.
        on_progress: the builder's phase, its steps done and in all; called from threads of the builder.

    Returns:
        What is known about the engine without a GPU, for JSON: sizes in bytes, times in seconds, kinds of the parsed
        network's layers with the most frequent first, device memory of one context for each profile.

    Raises:
        UserError: the graph does not parse, is not what the manifest says, or does not build; the builder's own first
            error is in the sentence.
        OSError: the file cannot be written.
    """
    started, source = time.perf_counter(), GraphSource.of(request.onnx)
    parsed = _Network(library, request, source)
    forms = _rewritten(library, request, source, parsed)
    if request.accumulate == "fp32":
        from .accumulate import accumulate_in_float32  # loads onnx, as spelled.py does

        source = source.with_model(accumulate_in_float32(source.model))
        forms = [replace(form, model=accumulate_in_float32(form.model)) for form in forms]
    if forms:
        del parsed  # its weights need not be held twice
        built = _build_forms(library, request, source, forms, on_progress)
    else:
        built = _build(parsed if request.accumulate == "auto" else _Network(library, request, source), on_progress)
    data = built.data
    path.write_bytes(memoryview(data))
    messages, scores, values = built.messages, *read_accumulation(data)
    products = read_product_accumulation(data)
    if scores.get("fp16"):
        messages.warnings.append(
            f"{scores['fp16']} attention kernels accumulate the product of queries and keys in float16"
        )
    others = sum(products.values()) - products.get("fp32", 0)
    if request.accumulate == "fp32" and (others or values.get("fp16")):
        messages.warnings.append(
            f"{others} products and {values.get('fp16', 0)} attentions may accumulate in float16, though float32 was "
            "asked for"
        )
    return {
        "version": library.__version__,
        "layers": {"total": built.layers.total(), "kinds": dict(built.layers.most_common())},
        "attentions": built.attentions,
        "contents": {
            **messages.contents.as_record(),
            "score_accumulation": scores,
            "value_accumulation": values,
            "product_accumulation": products,
        },
        "plan_bytes": data.nbytes,
        "weight_bytes": messages.weight_bytes,
        "activation_bytes": messages.activation_bytes,
        "build_seconds": round(time.perf_counter() - started, 3),
        "peak_host_bytes": _peak_host_bytes(),
        "warnings": list(dict.fromkeys(messages.warnings)),
    }


@dataclass(frozen=True)
class _Form:
    """A graph in place of a bundle's."""

    model: bytes
    fused: list[str]
    """Names of the attentions that are to be one kernel each."""
    spelled_out: bool
    """The builder is free to make several kernels of one attention: they are counted. The operator is one, or fails."""


def _rewritten(library: Any, request: PlanRequest, source: GraphSource, parsed: _Network) -> list[_Form]:
    """Graphs to build in place of the bundle's, the best first: rewritten and with attentions spelled out, whose scores
    accumulate in float32; rewritten alone; the bundle's own. None: there is nothing to rewrite.
    """
    fused, types = parsed.attentions["fused"], parsed.attentions["types"]
    if not fused or not hasattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT for RTX has it
        return []
    from .rewrites import rewrite  # loads onnx, which a build that has nothing to do does not need
    from .spelled import spell_out

    # An engine without weights is filled from the bundle's graph: its constants stay as that has them.
    model, joined = (source.model, frozenset[str]()) if request.stripped else rewrite(source.model)
    kept = [name for name in fused if name not in joined]
    spelled, count = spell_out(model, types)
    forms = [_Form(spelled, kept, spelled_out=True)] if count else []
    if model is not source.model:
        forms.append(_Form(model, kept, spelled_out=False))
    return [*forms, _Form(source.model, fused, spelled_out=False)] if forms else []


def _build_forms(
    library: Any,
    request: PlanRequest,
    source: GraphSource,
    forms: list[_Form],
    on_progress: Callable[[str, int, int], None],
) -> _Built:
    """Build the first form that builds, and has one kernel for each of its attentions. For float32 accumulators one of
    which some do not fuse, unless another has more of them in one kernel: what an operator is taken apart to has
    products that choose for themselves.
    """
    partial: _Built | None = None
    for form in forms:
        try:
            built = _build(_Network(library, request, source.with_model(form.model)), on_progress)
        except UserError as error:
            if form is forms[-1] and partial is None:
                raise
            _log.info("stage %s is built in another form: %s", request.stage, error)
            continue
        built = replace(built, attentions={**built.attentions, "fused": form.fused})
        kernels = built.messages.contents.attentions
        if form.spelled_out and kernels != max(len(request.shapes.profiles), 1) * len(form.fused):
            _log.info("stage %s is built in another form: some attentions do not fuse spelled out", request.stage)
            partial = built if request.accumulate == "fp32" else None
        else:
            return built if partial is None or kernels > partial.messages.contents.attentions else partial
    assert partial is not None  # the last form is not spelled out
    return partial


@dataclass(frozen=True)
class _Built:
    data: Any
    layers: collections.Counter[str]
    attentions: dict[str, Any]
    messages: Messages


class _Network:
    """A parsed graph with its sizes and attentions settled; keeps what the builder reads until it has built."""

    def __init__(self, library: Any, request: PlanRequest, source: GraphSource) -> None:
        self.library, self.request = library, request
        self.messages = messages = Messages()
        logger = make_logger(library, messages)
        self.builder = library.Builder(logger)
        self.network = self.builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = library.OnnxParser(self.network, logger)
        weights = load_graph(parser, source)
        self._kept = parser, weights
        if weights is None or not parser.parse_model_proto():
            reason = parser.get_error(0).desc() if parser.num_errors else messages.reason()
            raise UserError(
                f"{request.backend.title} cannot read {PurePath(request.onnx.name).name} ({plain_words(reason)})."
            )
        _check_tensors(self.network, request)
        # First: a size that the graph leaves open and the engine has fixed decides what fuses.
        by_name = {self.network.get_input(i).name: self.network.get_input(i) for i in range(self.network.num_inputs)}
        for spec in request.shapes.inputs:
            by_name[spec.name].shape = [size if isinstance(size, int) else -1 for size in spec.shape]
        self.attentions = settle_attentions(library, self.network, request.shapes.smallest_batch)


def _build(parsed: _Network, on_progress: Callable[[str, int, int], None]) -> _Built:
    library, request, builder, network = parsed.library, parsed.request, parsed.builder, parsed.network
    messages, attentions = parsed.messages, parsed.attentions
    config = _configure(library, builder, request)
    config.progress_monitor = _make_monitor(library, on_progress)
    layers = collections.Counter(network.get_layer(i).type.name.lower() for i in range(network.num_layers))
    data = builder.build_serialized_network(network, config)
    # Some failures are only logged; the builder then hands out a plan of something else, or nothing.
    if data is None or messages.errors:
        raise UserError(_failure(library, request, messages, attentions["fused"]))
    return _Built(data, layers, {name: attentions[name] for name in ("fused", "decomposed")}, messages)


def _check_tensors(network: Any, request: PlanRequest) -> None:
    """The manifest describes this graph: names and types, in its own words."""
    for count, get, specs in (
        (network.num_inputs, network.get_input, request.shapes.inputs),
        (network.num_outputs, network.get_output, request.shapes.outputs),
    ):
        tensors = [get(i) for i in range(count)]
        found = {tensor.name: _DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()) for tensor in tensors}
        if found != {spec.name: spec.dtype for spec in specs}:
            raise UserError(
                f"{PurePath(request.onnx.name).name} has other tensors than the manifest says: export the bundle again."
            )


def _configure(library: Any, builder: Any, request: PlanRequest) -> Any:
    config = builder.create_builder_config()
    set_target(library, config, request.backend, request.target)
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
    for profile_spec in (entry for entry in request.shapes.profiles if entry.inputs):
        profile = builder.create_optimization_profile()
        for name, sizes in profile_spec.inputs.items():
            profile.set_shape(name, sizes.minimum, sizes.optimum, sizes.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise UserError(f"stage {request.stage}: the builder takes no profile of {profile_spec.inputs}.")
    return config


def _failure(library: Any, request: PlanRequest, messages: Messages, fused: list[str]) -> str:
    blamed = next((name for name in fused if any(name in error for error in messages.errors)), None)
    if blamed:
        what = f"attention {blamed} has no fused kernel"
    elif any(_NO_KERNEL in error for error in messages.errors):
        what = "one of its attentions has no fused kernel at these sizes"
    else:
        what = plain_words(messages.reason())
    return (
        f"{request.backend.title} {library.__version__} cannot build stage {request.stage} for {request.target.name} "
        f"({what}): try another --precision or --target."
    )


class Messages:
    """What the builder says: errors that it logs without raising, and the sizes that it only tells its log."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.activation_bytes: list[int] = []
        """Device memory of one context, in the order of the profiles."""
        self.weight_bytes: int | None = None
        self.contents = Contents()

    def add(self, severity: str, text: str) -> None:
        """One message, by the name of its severity; it may be of many lines."""
        if severity == "VERBOSE":
            for entry in text.splitlines():
                self.contents.add(entry)
        line = " ".join(text.split())
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(line)
        elif severity == "WARNING":
            self.warnings.append(line)
            _log.debug("builder: %s", line)
        elif match := _ACTIVATIONS.search(line):
            self.activation_bytes.append(int(match[1]))
        elif match := _WEIGHTS.search(line):
            self.weight_bytes = int(match[1])

    def reason(self) -> str:
        """The first error."""
        return self.errors[0] if self.errors else "no reason given"


def plain_words(text: str) -> str:
    """The first line of what a library says, for a sentence: without links and control characters, not too long."""
    line = (text.strip().splitlines() or [""])[0]
    line = _LINK.sub("", "".join(character if character.isprintable() else " " for character in line))
    return " ".join(line.split())[:300].rstrip(". ") or "no reason given"


def make_logger(library: Any, messages: Messages) -> Any:
    """A logger of this library that fills `messages`."""

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.add(severity.name, message)

    return Logger()


def _make_monitor(library: Any, on_progress: Callable[[str, int, int], None]) -> Any:
    """A progress monitor that reports every phase and step; the builder calls it from threads of its own."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = num_steps
                on_progress(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                on_progress(phase_name, step + 1, self._steps.get(phase_name, 0))
            return True

    return Monitor()


def _peak_host_bytes() -> int | None:
    """The largest resident size of this process so far; Linux only, None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s*(\d+)", status, re.MULTILINE)
    return None if found is None else int(found[1]) * 1024
