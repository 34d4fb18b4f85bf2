"""Tokens with the guidance branches beside the channels, in the order that attention needs.

The exported transformers keep tokens as [branches, frames, positions, channels]. A fused attention takes queries
[batch, tokens, size] of one stride along its batch, and its batch is branches, frames or positions times heads: in that
order every operand and every output is copied. Here spatial transformers run on [positions, frames, branches, channels]
and temporal ones on [frames, positions, branches, channels]: the batch lies beside the heads, and the copies go. The
first frame attends as the others do, to its own tokens twice, which leaves its average unchanged: one attention in
place of two and the copy that joined them.

Only the engine's graph is rewritten: on a processor the copies cost little, and the second listing of frame 0 some
work.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .new_nodes import NewNodes

SPATIAL, TEMPORAL = (2, 1, 0, 3), (1, 2, 0, 3)
_REARRANGEMENTS = frozenset(
    {"Reshape", "Transpose", "Slice", "Gather", "Concat", "Expand", "Split", "Squeeze", "Unsqueeze", "Shape"}
)
_TOKEN_WISE = frozenset({"MatMul", "Add", "Mul", "Gelu", "LayerNormalization", "Split", "Cast"})


@dataclass(frozen=True)
class _Core:
    """What lies between the projections and the product that ends an attention."""

    attentions: tuple[ir.Node, ...]
    end: ir.Node
    """The product over all heads."""
    inner: tuple[ir.Node, ...]
    """The attentions, and what arranges their operands and outputs."""
    query: ir.Value
    key: ir.Value | None
    """As projected; None: keys and values of the text, inputs of the graph."""
    value: ir.Value | None

    @property
    def order(self) -> tuple[int, ...] | None:
        """The order that a self-attention wants; None where it is of another form."""
        if self.key is None:
            return None
        _, frames, positions, _ = self.query.shape
        lengths = [(_length(one, 0), _length(one, 1)) for one in self.attentions]
        if lengths == [(positions, positions), (positions, 2 * positions)]:
            return SPATIAL
        return TEMPORAL if lengths in ([(frames, frames)], [(frames, frames + 8)]) else None


@dataclass
class Ordered:
    """What was rewritten."""

    transformers: int = 0
    joined: frozenset[str] = frozenset()
    """Names of the attentions that became part of another one."""


def order_tokens(graph: ir.Graph) -> Ordered:
    """Rewrite, in place, every transformer whose self-attention is recognised.

    Args:
        graph: its values have shapes; at most the number of branches is open.
    """
    cores, done = _find_cores(graph), Ordered()
    for core in list(cores.values()):
        norm = core.query.producer().inputs[0].producer()
        if core.order is not None and norm is not None and norm.op_type == "LayerNormalization":
            _Reordering(graph, cores, core.order).run(norm.inputs[0])
            done.transformers += 1
            done.joined |= {attention.name for attention in core.attentions[1:]}
    return done


class _Reordering:
    """One transformer in another order, from the sum that its first normalisation reads to what reads its result."""

    def __init__(self, graph: ir.Graph, cores: dict[ir.Node, _Core], order: tuple[int, ...]) -> None:
        self.graph, self.cores, self.order = graph, cores, order
        self.ordered: set[ir.Value] = set()
        self.restored: dict[ir.Value, ir.Value] = {}

    def run(self, start: ir.Value) -> None:
        readers = [node for node, _ in start.uses()]
        first = start.producer()
        nodes = list(self.graph)
        nodes = nodes[nodes.index(first) + 1 :]
        moved = NewNodes(self.graph, nodes[0]).transpose(start, self.order)
        for reader in readers:
            _replace(reader, start, moved)
        self.ordered.add(moved)
        inner = {node for core in self.cores.values() for node in core.inner}
        for node in nodes:
            if node in self.cores and self.cores[node].query in self.ordered:
                self._attend(self.cores[node])
                self._keep(node)
            elif node not in inner and any(value in self.ordered for value in node.inputs):
                self._step(node)

    def _step(self, node: ir.Node) -> None:
        out = node.outputs[0]
        if node.op_type == "Reshape" and _sizes(node.inputs[0]) == _moved(_sizes(out), self.order):
            # Of the text attention's [branches, tokens, channels], which its new form has at once.
            out.replace_all_uses_with(node.inputs[0])
        elif node.op_type in _TOKEN_WISE and all(self._goes_along(value) for value in node.inputs):
            self._keep(node)
        else:
            for value in dict.fromkeys(value for value in node.inputs if value in self.ordered):
                if value not in self.restored:
                    back = tuple(int(axis) for axis in np.argsort(self.order))
                    self.restored[value] = NewNodes(self.graph, node).transpose(value, back)
                _replace(node, value, self.restored[value])

    def _goes_along(self, value: ir.Value | None) -> bool:
        return value is None or value in self.ordered or (value.is_initializer() and len(value.shape) <= 2)

    def _keep(self, node: ir.Node) -> None:
        like = next(value for value in node.inputs if value in self.ordered)
        for out in node.outputs:
            out.shape = ir.Shape([*like.shape[:3], out.shape[-1]])
            self.ordered.add(out)

    def _attend(self, core: _Core) -> None:
        nodes = NewNodes(self.graph, core.end)
        heads, size = _attention_heads(core.attentions[0])
        tables = _rotation(core)
        first, second, branches, channels = core.query.shape

        def turned(value: ir.Value) -> ir.Value:
            return _rotate(nodes, value, *tables) if tables else value

        def split(value: ir.Value) -> ir.Value:
            """[tokens, .., channels] -> [batch, heads, tokens, size]."""
            return nodes.transpose(nodes.reshape(value, [value.shape[0], -1, heads, size]), (1, 2, 0, 3))

        query = turned(core.query)
        if core.key is None or core.value is None:
            query = nodes.reshape(query, [first * second, -1, channels])
            keys = list(core.attentions[0].inputs[1:3])
        else:
            keys = self._keys(nodes, core, (turned(core.key), core.value))
        operands = [split(query), *keys]
        attended = nodes.add("Attention", operands, operands[0].shape, scale=_scale(core.attentions[0]))
        # The old node goes, and facts and builder name attentions as the bundle's graph does.
        core.attentions[0].name, attended.producer().name = None, core.attentions[0].name
        joined = nodes.reshape(nodes.transpose(attended, (2, 0, 1, 3)), [first, second, -1, channels])
        joined.shape = ir.Shape([first, second, branches, channels])
        self.ordered.add(joined)
        core.end.replace_input_with(0, joined)

    def _keys(self, nodes: NewNodes, core: _Core, pair: tuple[ir.Value, ir.Value]) -> list[ir.Value]:
        """Keys and values [batch, heads, tokens, size], with those of the first frame that every token also sees. On
        one tensor, so that one kernel arranges both.
        """
        heads, size = _attention_heads(core.attentions[0])
        first, second, branches, channels = core.query.shape
        both = nodes.concat([nodes.reshape(value, [1, first, second, None, channels]) for value in pair], 0)
        window = _window(core)
        if self.order == SPATIAL:
            shared = nodes.add("Expand", [nodes.first(both, 2), nodes.integers([1, 1, second, 1, 1])], both.shape)
            both = nodes.concat([both, shared], 1)
        elif window is not None:
            frame = nodes.reshape(nodes.first(both, 1), [2, second, None, channels])
            near = nodes.add("Gather", [frame, window], [2, 8 * second, branches, channels], axis=1)
            both = nodes.concat([both, nodes.reshape(near, [2, 8, second, None, channels])], 1)
        tokens = both.shape[1]
        arranged = nodes.transpose(nodes.reshape(both, [2, tokens, None, heads, size]), (0, 2, 3, 1, 4))
        sizes = [None, heads, tokens, size]
        return [nodes.add("Gather", [arranged, nodes.integer(part)], sizes, axis=0) for part in (0, 1)]


def _rotate(nodes: NewNodes, value: ir.Value, cosine: ir.Value, sine: ir.Value) -> ir.Value:
    """Pairs of neighbouring channels, from the first on, turned by their frame's angle; value is [frames, ...]."""
    frames, positions, branches, channels = value.shape
    pairs = cosine.shape[-1]
    sizes = [frames, positions, branches, pairs]
    cos, sin = (nodes.reshape(table, [frames, 1, 1, pairs]) for table in (cosine, sine))

    def product(one: ir.Value, other: ir.Value) -> ir.Value:
        return nodes.add("Mul", [one, other], sizes)

    turning, still = nodes.split(value, [2 * pairs, channels - 2 * pairs])
    columns = nodes.reshape(turning, [*sizes, 2])
    even, odd = (nodes.reshape(column, sizes) for column in nodes.split(columns, [1, 1]))
    turned = [
        nodes.add("Sub", [product(even, cos), product(odd, sin)], sizes),
        nodes.add("Add", [product(odd, cos), product(even, sin)], sizes),
    ]
    pair = nodes.concat([nodes.reshape(one, [*sizes, 1]) for one in turned], 4)
    joined = nodes.reshape(pair, [*sizes[:3], 2 * pairs])
    return nodes.concat([joined, still], 3)


def _find_cores(graph: ir.Graph) -> dict[ir.Node, _Core]:
    """By the product that ends each attention, in the order of the graph."""
    groups: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "Attention" and (end := _end(node)) is not None:
            groups.setdefault(end, []).append(node)
    cores = (_core(end, tuple(nodes)) for end, nodes in groups.items())
    return {core.end: core for core in cores if core is not None}


def _core(end: ir.Node, attentions: tuple[ir.Node, ...]) -> _Core | None:
    """None where a part is not as the export writes it."""
    projected = {index: {_projected(node.inputs[index]) for node in attentions} for index in range(3)}
    if any(len(found) != 1 for found in projected.values()) or any(any(node.inputs[3:]) for node in attentions):
        return None
    query, key, value = (found.pop() for found in projected.values())
    if query is None or not _is_settled(query) or (key is None) != (value is None):
        return None
    if key is None and not all(value.is_graph_input() for node in attentions for value in node.inputs[1:3]):
        return None
    core = _Core(attentions, end, tuple(_between(end, {query, key, value})), query, key, value)
    return core if _is_known(core) else None


def _is_settled(tokens: ir.Value) -> bool:
    """Of [branches, frames, positions, channels] only the branches may be open."""
    sizes = tokens.shape.dims if tokens.shape is not None else ()
    return len(sizes) == 4 and all(isinstance(size, int) for size in sizes[1:])


def _is_known(core: _Core) -> bool:
    """Whether the operands are rearranged, and perhaps turned by the tables of :func:`_rotation`, and no more."""
    counts = collections.Counter(node.op_type for node in core.inner)
    if not set(counts) <= _REARRANGEMENTS | {"Attention", "Mul", "Add", "Sub"} or counts["Attention"] > 2:
        return False
    return (counts["Sub"], counts["Mul"], counts["Add"]) in ((0, 0, 0), (1, 4, 1), (2, 8, 2))


def _end(attention: ir.Node) -> ir.Node | None:
    """The product that an attention's output comes to after rearrangements alone."""
    node = attention
    while node.op_type in ("Attention", "Transpose", "Reshape", "Concat"):
        uses = node.outputs[0].uses()
        if len(uses) != 1:
            return None
        node = uses[0].node
    return node if _is_projection(node) else None


def _projected(value: ir.Value) -> ir.Value | None:
    """The projection that an operand comes from; None: an input of the graph, or nothing known."""
    while (node := value.producer()) is not None and not _is_projection(node):
        if not node.inputs or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return value if node is not None else None


def _is_projection(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and node.inputs[1].is_initializer() and len(node.inputs[1].shape) == 2


def _between(end: ir.Node, projections: set[ir.Value | None]) -> Iterator[ir.Node]:
    pending, seen = [end.inputs[0]], set()
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None and value not in projections else None
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending += node.inputs


def _rotation(core: _Core) -> tuple[ir.Value, ir.Value] | None:
    """Cosines and sines [1, frames, 1, pairs] that turn pairs of neighbouring channels, from the first on."""
    for node in core.inner:
        if node.op_type == "Sub":
            cosine, sine = (product.producer().inputs[1] for product in node.inputs)
            return cosine, sine
    return None


def _window(core: _Core) -> ir.Value | None:
    """Indices of each position's neighbours in frame 0, [8 * positions]."""
    for node in core.inner:
        index = node.inputs[1] if node.op_type == "Gather" else None
        if index is not None and index.is_initializer() and len(index.shape) == 1:
            return index
    return None


def _attention_heads(attention: ir.Node) -> tuple[int, int]:
    """Heads, and channels of each."""
    _, heads, _, size = attention.inputs[0].shape
    return heads, size


def _scale(attention: ir.Node) -> float:
    """As it stands; the default is one over the root of the head size."""
    return attention.attributes.get_float("scale", 1 / math.sqrt(_attention_heads(attention)[1]))


def _length(attention: ir.Node, index: int) -> int | None:
    shape = attention.inputs[index].shape
    return shape[2] if shape is not None and len(shape) == 4 and isinstance(shape[2], int) else None


def _sizes(value: ir.Value) -> list[int | str]:
    dims = value.shape.dims if value.shape is not None else ()
    return [size if isinstance(size, int) else str(size) for size in dims]


def _moved(sizes: list[int | str], order: Sequence[int]) -> list[int | str] | None:
    return [sizes[axis] for axis in order] if len(sizes) == len(order) else None


def _replace(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)
