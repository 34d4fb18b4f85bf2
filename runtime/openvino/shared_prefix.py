"""The layers before the first text attention, once for all guidance branches.

The branches of a step differ in their prompt alone: everything that reads no text yet gives the same in each. The graph
is cut there. Where the rows of a call agree in all that is no text, its first part runs on one row and its results are
repeated; where they do not (several videos, image guidance) it runs on all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..session import Array

TEXTLESS_INPUTS = frozenset({"sample", "timestep", "first_frame_latents", "frame_stride"})
"""Inputs of the U-Net that are no text, nor made of it."""

Compile = Callable[[Any], Any]
"""An ``openvino.Model`` -> its inference request."""

_WORK = {"Convolution", "MatMul"}


@dataclass(frozen=True)
class Halves:
    """A graph in two: `rest` reads what `prefix` gives, joint by joint."""

    prefix: Any
    rest: Any
    cut_tensors: tuple[str, ...]
    """Names of the cut tensors: the prefix's results, in their order, and inputs of the rest."""


def cut_before_text(model: Any, textless: Collection[str]) -> Halves | None:
    """Cut an ``openvino.Model`` of fixed sizes in two, and leave it unusable.

    Args:
        textless: names of the inputs that are no text.

    Returns:
        None: no input is text, no work comes before it, or a result reads none.
    """
    import openvino
    from openvino import opset13 as op

    nodes = model.get_ordered_ops()
    from_inputs, from_text = (
        _downstream(nodes, {port.get_node().get_name() for port in model.inputs if port.any_name not in names})
        for names in ((), textless)
    )
    before = [node for node in nodes if node.get_name() in from_inputs - from_text]
    ends_in_text = all(result.get_name() in from_text for result in model.get_results())
    if not from_text or not ends_in_text or not any(node.get_type_name() in _WORK for node in before):
        return None
    prefix_results, rest_inputs, cut_tensors = [], [], []
    for output in (output for node in before for output in node.outputs()):
        readers = [target for target in output.get_target_inputs() if target.get_node().get_name() in from_text]
        if not readers:
            continue
        joint = op.parameter(output.get_shape(), output.get_element_type())
        name = f"{output.get_node().get_friendly_name()}:{output.get_index()}"
        joint.output(0).set_names({name})
        for reader in readers:
            reader.replace_source_output(joint.output(0))
        prefix_results.append(op.result(output))
        rest_inputs.append(joint)
        cut_tensors.append(name)
    own = {False: [], True: []}  # type: dict[bool, list[Any]]
    for parameter in model.get_parameters():
        own[parameter.get_name() in from_text].append(parameter)
    results = model.get_results()
    return Halves(
        openvino.Model(prefix_results, own[False], "prefix"),
        openvino.Model(results, own[True] + rest_inputs, "rest"),
        tuple(cut_tensors),
    )


def _downstream(nodes: list[Any], sources: Collection[str]) -> set[str]:
    """Unique names of the nodes that are among `sources` or read one that is; nodes in their order of execution."""
    found: set[str] = set()
    for node in nodes:
        above = (value.get_node().get_name() for value in node.input_values())
        if node.get_name() in sources or any(name in found for name in above):
            found.add(node.get_name())
    return found


class SharedPrefixGraph:
    """A graph of several rows whose first part runs on one row where the rows agree.

    Args:
        one_row, all_rows: the same graph cut at the same places, for one row and for all of them.
        compile_model: makes the requests. That of all rows' first part is made when it is first needed.
    """

    def __init__(self, one_row: Halves, all_rows: Halves, compile_model: Compile) -> None:
        from openvino import Tensor

        self._tensor = Tensor
        self._compile = compile_model
        # The rest is let go: its kernels are in the compiled graph.
        self._prefix_of_all = all_rows.prefix
        self._one = compile_model(one_row.prefix)
        self._all: Any = None
        self._rest = compile_model(all_rows.rest)
        self._first_rows = {port.any_name: next(iter(port.shape)) for port in one_row.prefix.inputs}
        self._bound: dict[str, Array] = {}
        self._joints: list[Array] = []
        self._repeated: list[tuple[Array, Array]] = []
        for index, name in enumerate(all_rows.cut_tensors):
            port, first_port = all_rows.prefix.outputs[index], one_row.prefix.outputs[index]
            joint: Array = np.zeros(list(port.shape), port.element_type.to_dtype())
            # A scalar has no rows; OpenVINO ends the process where a size is asked for that is not there.
            first = joint[: next(iter(first_port.shape))] if joint.ndim else joint
            self._one.set_output_tensor(index, Tensor(first, shared_memory=True))
            self._rest.set_tensor(name, Tensor(joint, shared_memory=True))
            self._joints.append(joint)
            if first.size < joint.size:
                self._repeated.append((first, joint[len(first) :].reshape(-1, *first.shape)))

    def set_tensor(self, name: str, tensor: Any) -> None:
        """Bind an input or an output, as :meth:`openvino.InferRequest.set_tensor`."""
        if name not in self._first_rows:
            self._rest.set_tensor(name, tensor)
            return
        array = tensor.data
        self._bound[name] = array
        self._one.set_tensor(name, self._tensor(array[: self._first_rows[name]], shared_memory=True))
        if self._all is not None:
            self._all.set_tensor(name, tensor)

    def steps(self) -> Iterator[Callable[[], None]]:
        """What one run consists of."""
        if self._rows_agree():
            yield lambda: self._one.infer(share_inputs=True)
            for first, others in self._repeated:
                others[...] = first
        else:
            if self._all is None:
                self._all = self._compiled_for_all()
            yield lambda: self._all.infer(share_inputs=True)
        yield lambda: self._rest.infer(share_inputs=True)

    def cancel(self) -> None:
        for request in (self._one, self._all, self._rest):
            if request is not None:
                request.cancel()

    def _rows_agree(self) -> bool:
        for name, array in self._bound.items():
            first = array[: self._first_rows[name]]
            if not all(np.array_equal(row, first) for row in np.split(array, len(array) // len(first))[1:]):
                return False
        return True

    def _compiled_for_all(self) -> Any:
        request = self._compile(self._prefix_of_all)
        self._prefix_of_all = None
        for index, joint in enumerate(self._joints):
            request.set_output_tensor(index, self._tensor(joint, shared_memory=True))
        for name, array in self._bound.items():
            request.set_tensor(name, self._tensor(array, shared_memory=True))
        return request


def same_cut(one_row: Halves | None, all_rows: Halves | None, rows: int) -> bool:
    """Whether two cut graphs differ by the number of rows alone, the outermost part of every first axis."""
    if one_row is None or all_rows is None or one_row.cut_tensors != all_rows.cut_tensors:
        return False
    ports: Mapping[str, tuple[Any, Any]] = {
        "inputs": (one_row.prefix.inputs, all_rows.prefix.inputs),
        "outputs": (one_row.prefix.outputs, all_rows.prefix.outputs),
    }
    for ones, alls in ports.values():
        for one, many in zip(ones, alls, strict=True):
            first, other = list(one.shape), list(many.shape)
            if first != other and [first[0] * rows, *first[1:]] != other:
                return False
    return True
