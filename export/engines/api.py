"""The part of TensorRT's Python interface that is used here, as types.

NVIDIA ships compiled modules without stubs, so these protocols are what mypy checks the code of this folder by. A test
compares their names with `tensorrt_rtx` itself, and with the symbols of `tensorrt`'s bindings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tensor(Protocol):
    name: str
    shape: Sequence[int]
    dtype: Any


class Layer(Protocol):
    name: str
    type: Any
    num_inputs: int

    def get_input(self, index: int) -> Tensor | None: ...


class Network(Protocol):
    num_inputs: int
    num_outputs: int
    num_layers: int

    def get_input(self, index: int) -> Tensor: ...

    def get_output(self, index: int) -> Tensor: ...

    def get_layer(self, index: int) -> Layer: ...


class Profile(Protocol):
    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class BuilderConfig(Protocol):
    progress_monitor: Any
    profiling_verbosity: Any
    hardware_compatibility_level: Any
    num_compute_capabilities: int
    """TensorRT for RTX only, like the next one."""

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool: ...

    def add_optimization_profile(self, profile: Profile) -> int: ...

    def set_flag(self, flag: Any) -> None: ...

    def clear_flag(self, flag: Any) -> None: ...


class HostMemory(Protocol):
    nbytes: int


class Builder(Protocol):
    def create_network(self, flags: int) -> Network: ...

    def create_builder_config(self) -> BuilderConfig: ...

    def create_optimization_profile(self) -> Profile: ...

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None: ...


class ParserError(Protocol):
    def desc(self) -> str: ...


class OnnxParser(Protocol):
    num_errors: int

    def load_model_proto(self, model: bytes) -> bool: ...

    def load_initializer(self, name: str, data: int, size: int) -> bool: ...

    def parse_model_proto(self) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...


class TensorRT(Protocol):
    """The module itself."""

    __version__: str
    ILogger: Any
    IProgressMonitor: Any
    IAttentionInputLayer: Any
    LayerType: Any
    DataType: Any
    BuilderFlag: Any
    ComputeCapability: Any
    """TensorRT for RTX only."""
    HardwareCompatibilityLevel: Any
    NetworkDefinitionCreationFlag: Any
    ProfilingVerbosity: Any

    def Builder(self, logger: Any) -> Builder: ...  # noqa: N802

    def OnnxParser(self, network: Network, logger: Any) -> OnnxParser: ...  # noqa: N802
