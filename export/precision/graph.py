"""A float32 ONNX graph opened for rewriting, as onnx-ir has it; its weights are read when the new graph is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.bundle.graph_source import GraphSource
from ...runtime.files.opened_file import Bytes

OPSET = 23
FLOAT = ir.DataType.FLOAT
# Shorter tensors stay inside the .onnx file, as the exporter does it.
_INLINE_BYTES = 1024
Array = NDArray[Any]


class Graph:
    """The main graph of a model.

    Raises:
        UserError: not an opset-23 graph without functions, as `consisti2v export` writes it.
    """

    def __init__(self, source: GraphSource | Path) -> None:
        self.source = GraphSource.of(source)
        self.name = self.source.file_name
        self.model = ir.from_proto(onnx.load_model_from_string(self.source.model))
        if self.model.opset_imports.get("") != OPSET or self.model.functions:
            raise UserError(
                f"{self.name} is opset {self.model.opset_imports.get('')}, not {OPSET}: export the bundle again."
            )
        self.body = self.model.graph
        for weight in self.body.initializers.values():
            if isinstance(weight.const_value, ir.ExternalTensor):
                weight.const_value = self._from_contents(weight.const_value)
        self._names = {*self.body.initializers, *(value.name for value in self.body.inputs)}
        self._names.update(value.name for node in self.body for value in node.outputs)

    @cached_property
    def _contents(self) -> dict[str, Bytes]:
        """The files of the weights, by the location as the graph spells it; onnx-ir itself opens none."""
        return self.source.weights()

    def _from_contents(self, tensor: ir.ExternalTensor) -> ir.LazyTensor:
        def load() -> ir.Tensor:
            start = tensor.offset or 0
            content = self._contents[str(tensor.location)][start : start + tensor.nbytes]
            return ir.Tensor(content.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy()), name=tensor.name)

        return ir.LazyTensor(load, tensor.dtype, tensor.shape, name=tensor.name)

    def read(self, weight: ir.Value) -> Array:
        """The values of a weight before any rounding, in the type that the float32 graph holds."""
        exact: Callable[[], Array] = weight.meta.get("exact", weight.const_value.numpy)
        return exact()

    def add_weight(
        self,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        compute: Callable[[], Array],
        exact: Callable[[], Array] | None = None,
    ) -> ir.Value:
        """The constant of this name; where there is none yet, one whose values are computed when the graph is written.
        `exact`: what :meth:`read` gives for it; None: `compute`.
        """
        if name not in self.body.initializers:
            tensor = ir.LazyTensor(
                lambda: ir.Tensor(compute(), dtype=dtype, name=name), dtype, ir.Shape(shape), name=name
            )
            value = ir.Value(name=name, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
            value.meta["exact"] = exact or compute
            self._names.add(name)
            self.body.register_initializer(value)
        return self.body.initializers[name]

    def insert(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value],
        output: str,
        dtype: int,
        shape: Any,
        **attributes: Any,
    ) -> ir.Value:
        """The output, named `output` or so, of a new node before another one."""
        value = ir.val(self.fresh(output), ir.DataType(dtype), shape)
        self.body.insert_before(before, ir.node(op, inputs, attributes, outputs=[value], name=f"{op}_{value.name}"))
        return value

    def fresh(self, name: str) -> str:
        """A value name that is not taken yet, from `name`."""
        candidate, count = name, 0
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate

    def write(self, path: Path) -> None:
        """Write the graph to `path`, its weights one at a time to ``<path>.data``, and check both by path.

        Raises:
            UserError: a weight overflows its type.
        """
        for name in [name for name, weight in self.body.initializers.items() if not weight.uses()]:
            del self.body.initializers[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            ir.save(self.model, path, external_data=f"{path.name}.data", size_threshold_bytes=_INLINE_BYTES)
        except (OverflowError, ir.serde.SerdeError) as error:
            # onnx-ir wraps what a short weight raises, once for every level.
            cause: BaseException = error
            while isinstance(cause, ir.serde.SerdeError) and cause.__cause__ is not None:
                cause = cause.__cause__
            if not isinstance(cause, OverflowError):
                raise cause from None
            raise UserError(
                f"weight {cause} of {self.name} does not fit this precision: use --precision bf16 or fp32."
            ) from None
        onnx.checker.check_model(str(path), full_check=True)
