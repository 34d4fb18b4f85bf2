"""A stage on the GPU: arrays in device memory, enqueued on a stream; and the plain :class:`Session` on top of that.

The loop uses the device side (``device_inputs``, ``bind``, ``enqueue``) and never waits. Encoders, which run once, use
the host side (``inputs``, ``run``, ``outputs``) like on a processor: pinned buffers, copied there and back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import CancelledError, UserError
from ..bundle.manifest import StageSpec, TensorSpec
from ..session import resolve_shape
from .device import Gpu
from .memory import Array, DeviceArray, GpuMemory


class DeviceSession(ABC):
    """One stage with buffers for one set of sizes.

    Args:
        gpu: where it runs.
        inputs, outputs: names, dtypes and shapes; dynamic sizes by name.
    """

    def __init__(self, gpu: Gpu, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> None:
        self._gpu = gpu
        self._memory = GpuMemory(gpu)
        self._specs = {"in": tuple(inputs), "out": tuple(outputs)}
        self._dims: dict[str, int] | None = None
        self._allocations = 0
        """How often the buffers were made."""
        self._cancelled = False
        self.device_inputs: dict[str, DeviceArray] = {}
        self.device_outputs: dict[str, DeviceArray] = {}
        self._bound: dict[str, DeviceArray] = {}
        self._host_inputs: dict[str, Array] | None = None
        self._host_outputs: dict[str, Array] | None = None
        self._pinned: list[Any] = []

    # -- what a backend has to say -------------------------------------------------------------------------------------

    @abstractmethod
    def _set_sizes(self, dims: Mapping[str, int]) -> None:
        """Get ready for these sizes, before buffers are made."""

    @abstractmethod
    def _set_address(self, name: str, array: DeviceArray) -> None:
        """Read or write this tensor at the array's address from the next run on."""

    @abstractmethod
    def prepare(self) -> None:
        """Bring the weights to the GPU and make the context, unless they are there."""

    @abstractmethod
    def enqueue(self) -> None:
        """Put one run on the GPU's stream and return."""

    @abstractmethod
    def with_dims(self, dims: Mapping[str, int]) -> DeviceSession:
        """A session for other sizes over the same weights.

        Raises:
            UserError: it was not built for these sizes.
        """

    @abstractmethod
    def release(self) -> None:
        """Free the weights' device memory; the next run brings them back."""

    def finished(self) -> None:
        """A generation is over: keep for the next start what this one had to work out."""
        return

    @property
    @abstractmethod
    def _backend_version(self) -> tuple[int, ...]:
        """Changes when memory of the backend moved: weights, workspace."""

    @property
    @abstractmethod
    def context_version(self) -> int:
        """Changes when :meth:`prepare` made a context anew: its first run may compile, and must not be captured."""

    @property
    def address_version(self) -> tuple[int, ...]:
        """Changes when anything moved in memory, so that work captured before must not be replayed."""
        return self._allocations, *self._backend_version

    # -- the device side -----------------------------------------------------------------------------------------------

    def allocate(self, dims: Mapping[str, int]) -> None:
        """Make the buffers for these dynamic sizes, unless they already fit."""
        shapes = [size for specs in self._specs.values() for spec in specs for size in spec.shape]
        used = {size.partition("/")[0] for size in shapes if isinstance(size, str)}
        wanted = {name: size for name, size in dims.items() if name in used}
        if wanted == self._dims:
            return
        self._set_sizes(wanted)
        self._host_inputs = self._host_outputs = None
        self._pinned.clear()
        self._bound.clear()
        self._allocations += 1
        self.device_inputs = self._make("in", wanted)
        self.device_outputs = self._make("out", wanted)
        self._dims = wanted
        for name, array in (*self.device_inputs.items(), *self.device_outputs.items()):
            self.bind(name, array)

    def _make(self, direction: str, dims: Mapping[str, int]) -> dict[str, DeviceArray]:
        return {spec.name: self._memory.zeros(resolve_shape(spec, dims), spec.dtype) for spec in self._specs[direction]}

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of the dynamic dimensions it has buffers for."""
        return dict(self._dims or {})

    def bind(self, name: str, array: DeviceArray) -> None:
        """Use this array for a tensor from the next run on; it must live as long as runs are under way.

        Raises:
            ValueError: another shape or dtype than the tensor's.
        """
        own = self.device_inputs.get(name) or self.device_outputs[name]
        if (array.shape, array.dtype) != (own.shape, own.dtype):
            raise ValueError(f"{name} is {own.dtype} {list(own.shape)}, not {array.dtype} {list(array.shape)}")
        previous = self._bound.get(name)
        # Kept in any case: the array's memory must live as long as it is bound.
        self._bound[name] = array
        if previous is None or previous.address != array.address:
            self._set_address(name, array)

    # -- the host side: the Session protocol ---------------------------------------------------------------------------

    @property
    def inputs(self) -> Mapping[str, Array]:
        if self._host_inputs is None:
            self._host_inputs = self._host_arrays(self.device_inputs)
        return self._host_inputs

    @property
    def outputs(self) -> Mapping[str, Array]:
        if self._host_outputs is None:
            self._host_outputs = self._host_arrays(self.device_outputs)
        return self._host_outputs

    def _host_arrays(self, arrays: Mapping[str, DeviceArray]) -> dict[str, Array]:
        made = {name: self._memory.pinned(array.shape, array.dtype) for name, array in arrays.items()}
        self._pinned.extend(made.values())
        for pinned in made.values():
            pinned.array[...] = 0
        return {name: pinned.array for name, pinned in made.items()}

    def bind_input(self, name: str, array: Array) -> None:
        """Read this input from a host array from the next run on."""
        own = self.inputs[name]
        if (array.shape, array.dtype) != (own.shape, own.dtype) or not array.flags.c_contiguous:
            raise ValueError(f"input {name}: a bound array must be contiguous {own.dtype} {list(own.shape)}")
        assert self._host_inputs is not None
        self._host_inputs[name] = array

    def run(self) -> None:
        """Copy the inputs to the GPU, run, copy the outputs back, wait."""
        if self._cancelled:
            raise CancelledError
        stream = self._gpu.stream
        for name, array in self.inputs.items():
            self._gpu.copy(self.device_inputs[name].address, array.ctypes.data, array.nbytes, stream)
            self.bind(name, self.device_inputs[name])
        for name, device in self.device_outputs.items():
            self.bind(name, device)
        self.enqueue()
        for name, array in self.outputs.items():
            self._gpu.copy(array.ctypes.data, self.device_outputs[name].address, array.nbytes, stream)
        stream.sync()

    def cancel(self) -> None:
        self._cancelled = True

    def resume(self) -> None:
        self._cancelled = False


def check_same_tensors(stage_name: str, found: Iterable[TensorSpec], stage: StageSpec, what: str) -> None:
    """An engine describes the stage of this bundle, not another one.

    Raises:
        UserError: other names, or as many of them but of other sizes.
    """
    wanted = {spec.name: len(spec.shape) for spec in (*stage.inputs, *stage.outputs)}
    if {spec.name: len(spec.shape) for spec in found} != wanted:
        raise UserError(
            f"{what} has other inputs or outputs than stage {stage_name} of this bundle: build it again with "
            "'consisti2v build BUNDLE --target current'."
        )
