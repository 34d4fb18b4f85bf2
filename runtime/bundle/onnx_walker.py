"""What an ONNX file refers to, read from its bytes without the onnx package: external files, operator domains, shapes.

A bundle may come from anyone, so the graph is looked through before any library loads it. The reader knows the few
protobuf messages of onnx.proto that can hold a reference, and refuses what protobuf parsers may read in two ways:
groups, wrong wire types, and a message field that is given twice (parsers merge those). Its work is bounded by
:data:`MAX_FIELDS` and :data:`MAX_DEPTH`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType

MAX_BYTES = (1 << 31) - 1
"""Of a graph without its weights; protobuf itself takes no more."""
MAX_FIELDS = 600_000
"""Protobuf fields read, in a second or two; a full-size U-Net has about 150,000."""
MAX_RANK = 16
"""Sizes of a tensor: the product of a million of them takes minutes."""
MAX_DEPTH = 8
"""Graphs within graphs."""
DOMAINS = ("", "ai.onnx")
"""Operator domains a bundle's graphs may use: ONNX's own."""

_NAMES = ["float32", "uint8", "int8", "int16", "int32", "int64", "bool", "float16", "float64", "bfloat16"]
DTYPES = dict(zip((1, 2, 3, 5, 6, 7, 9, 10, 11, 16), _NAMES, strict=True))
"""ONNX element type -> its name in a manifest."""
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
_BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}
_EXTERNAL_KEYS = ("location", "offset", "length", "checksum")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of the main graph."""

    name: str
    dtype: str
    """As in a manifest; an element type that a manifest cannot name is "type N"."""
    shape: tuple[int | str | None, ...] | None
    """Sizes; a name stands for a dynamic one, None for one without a name. None instead of the tuple: no shape."""


@dataclass(frozen=True)
class ExternalTensor:
    """An initialiser of the main graph whose values lie in another file."""

    name: str
    location: str
    offset: int
    nbytes: int
    elem_type: int
    """ONNX's number of its type."""
    shape: tuple[int, ...]
    place: tuple[int, int]
    """Start and end of its field in the serialised model."""


@dataclass
class GraphMetadata:
    """What was found."""

    inputs: list[GraphTensor] = field(default_factory=list)
    """Without those that are initialisers."""
    outputs: list[GraphTensor] = field(default_factory=list)
    external: list[ExternalTensor] = field(default_factory=list)
    initialisers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name -> shape, of the main graph."""
    lookups: dict[str, str] = field(default_factory=dict)
    """Of the main graph's Gather nodes: what selects the rows -> the table."""
    domains: set[str] = field(default_factory=set)
    place: tuple[int, int, int] = (0, 0, 0)
    """Of the main graph in the serialised model: start of its field, start and end of its content."""

    @property
    def locations(self) -> tuple[str, ...]:
        """The other files, as the graph spells them, each once."""
        return tuple(dict.fromkeys(tensor.location for tensor in self.external))


def read_metadata(data: bytes) -> GraphMetadata:
    """Look through a serialised ``onnx.ModelProto``.

    Raises:
        ValueError: it is not ONNX, refers to a file from elsewhere than an initialiser of its main graph, uses
            operators of another domain than ONNX's, or is too large; in a few words.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes, more than {MAX_BYTES}")
    # ONNX Runtime would take these bytes for its own format, whatever else they are.
    if data[4:8] == b"ORTM":
        raise ValueError("it is a graph in ONNX Runtime's own format, not in ONNX")
    walker = _Walker(data)
    walker.model()
    foreign = sorted(walker.metadata.domains - set(DOMAINS))
    if foreign:
        raise ValueError(f"it uses operators of the domain {foreign[0][:80]!r}, and only ONNX's own are allowed")
    return walker.metadata


@dataclass
class _Tensor:
    """A TensorProto without its values."""

    name: str = ""
    elem_type: int = 0
    dims: tuple[int, ...] = ()
    entries: dict[str, str] | None = None
    """Of its external data; None: the values are in the graph."""


class _Walker:
    def __init__(self, data: bytes) -> None:
        self._data, self._left = data, MAX_FIELDS
        self._begin = 0
        """Where the field that was read last begins."""
        self.metadata = GraphMetadata()

    # -- messages ------------------------------------------------------------------------------------------------------

    def model(self) -> None:
        found = False
        for number, _, start, end in self._fields(0, len(self._data), {7: _BYTES, 20: None, 25: _BYTES}, {7: "graph"}):
            if number == 7:
                found = True
                self.metadata.place = (self._begin, start, end)
                self._graph(start, end, 0)
            elif number == 20:
                raise ValueError("it holds a training graph")
            else:
                self._function(start, end)
        if not found:
            raise ValueError("it holds no ONNX graph")

    def _function(self, start: int, end: int) -> None:
        for number, _, at, to in self._fields(start, end, dict.fromkeys((7, 10, 11), _BYTES)):
            if number == 7:
                self._node(at, to, 1)
            elif number == 10:
                self.metadata.domains.add(self._text(at, to))
            else:
                self._attribute(at, to, 1)

    def _graph(self, start: int, end: int, depth: int) -> None:
        """`depth` 0: the main graph, whose initialisers and borders are kept."""
        if depth > MAX_DEPTH:
            raise ValueError(f"its graphs are nested more than {MAX_DEPTH} deep")
        borders: dict[int, list[GraphTensor]] = {11: [], 12: []}
        for number, _, at, to in self._fields(start, end, dict.fromkeys((1, 5, 11, 12, 15), _BYTES)):
            if number == 1:
                self._node(at, to, depth)
            elif number == 5 and depth == 0:
                self._initialiser(self._begin, at, to)
            elif number == 5:
                self._inner_tensor(at, to)
            elif number == 15:
                self._sparse(at, to)
            elif depth == 0:
                borders[number].append(self._value(at, to))
        if depth == 0:
            self.metadata.inputs = [value for value in borders[11] if value.name not in self.metadata.initialisers]
            self.metadata.outputs = borders[12]

    def _node(self, start: int, end: int, depth: int) -> None:
        inputs: list[tuple[int, int]] = []
        is_lookup = False
        self.metadata.domains.add("")
        for number, wire, at, to in self._fields(start, end, {1: _BYTES, 4: None, 5: _BYTES, 7: _BYTES}):
            if number == 1:
                inputs.append((at, to))
            elif number == 4:
                is_lookup = wire == _BYTES and self._data[at:to] == b"Gather"
            elif number == 5:
                self._attribute(at, to, depth)
            else:
                self.metadata.domains.add(self._text(at, to))
        if is_lookup and depth == 0 and len(inputs) == 2:
            table, rows = (self._text(*place) for place in inputs)
            self.metadata.lookups[rows] = table

    def _attribute(self, start: int, end: int, depth: int) -> None:
        wanted, once = dict.fromkeys((5, 6, 10, 11, 22, 23), _BYTES), dict.fromkeys((5, 6, 22), "attribute")
        for number, _, at, to in self._fields(start, end, wanted, once):
            if number in (5, 10):
                self._inner_tensor(at, to)
            elif number in (6, 11):
                self._graph(at, to, depth + 1)
            else:
                self._sparse(at, to)

    def _sparse(self, start: int, end: int) -> None:
        for _, _, at, to in self._fields(start, end, {1: _BYTES, 2: _BYTES}):
            self._inner_tensor(at, to)

    def _inner_tensor(self, start: int, end: int) -> None:
        tensor = self._tensor(start, end)
        if tensor.entries is not None:
            raise ValueError(
                f"tensor {tensor.name[:80]!r}, which is no initialiser of its main graph, has values in another file"
            )

    def _initialiser(self, begin: int, start: int, end: int) -> None:
        tensor = self._tensor(start, end)
        if tensor.name in self.metadata.initialisers:
            raise ValueError(f"initialiser {tensor.name[:80]!r} is there twice")
        self.metadata.initialisers[tensor.name] = tensor.dims
        if tensor.entries is not None:
            self.metadata.external.append(_external(tensor, (begin, end)))

    def _tensor(self, start: int, end: int) -> _Tensor:
        tensor, dims, external, raw = _Tensor(), list[int](), False, None
        wanted = {1: None, 2: _VARINT, 8: _BYTES, 9: _BYTES, 13: _BYTES, 14: _VARINT}
        for number, wire, at, to in self._fields(start, end, wanted):
            if number == 1:
                dims += self._integers(wire, at, to)
                _check_rank(len(dims))
            elif number == 2:
                tensor.elem_type = at
            elif number == 8:
                tensor.name = self._text(at, to)
            elif number == 9:
                raw = to - at
            elif number == 14:
                external = at != 0
            else:
                found = {1: "", 2: ""}
                for part, _, a, b in self._fields(at, to, {1: _BYTES, 2: _BYTES}):
                    found[part] = self._text(a, b)
                key, value = found.values()
                tensor.entries = {} if tensor.entries is None else tensor.entries
                if key in tensor.entries or key not in _EXTERNAL_KEYS:
                    raise ValueError(f"the place of {tensor.name[:80]!r} has the key {key[:40]!r}, or has it twice")
                tensor.entries[key] = value
        if external != (tensor.entries is not None):
            raise ValueError(f"tensor {tensor.name[:80]!r} says both that its values lie in another file and that not")
        tensor.dims = tuple(dims)
        if tensor.entries is None:
            _check_values(tensor, raw, end - start)
        return tensor

    def _value(self, start: int, end: int) -> GraphTensor:
        name, dtype = "", "no tensor"
        shape: tuple[int | str | None, ...] | None = None
        for number, _, at, to in self._fields(start, end, {1: _BYTES, 2: _BYTES}, {2: "type"}):
            if number == 1:
                name = self._text(at, to)
            else:
                for _, _, a, b in self._fields(at, to, {1: _BYTES}):
                    dtype, shape = self._tensor_type(a, b)
        return GraphTensor(name, dtype, shape)

    def _tensor_type(self, start: int, end: int) -> tuple[str, tuple[int | str | None, ...] | None]:
        dtype, shape = "type 0", None
        for number, _, at, to in self._fields(start, end, {1: _VARINT, 2: _BYTES}, {2: "shape"}):
            if number == 1:
                dtype = DTYPES.get(at, f"type {at}")
            else:
                sizes: list[int | str | None] = []
                for _, _, a, b in self._fields(at, to, {1: _BYTES}):
                    sizes.append(None)
                    _check_rank(len(sizes))
                    for kind, _, c, d in self._fields(a, b, {1: _VARINT, 2: _BYTES}):
                        sizes[-1] = _signed(c) if kind == 1 else self._text(c, d) or None
                shape = tuple(sizes)
        return dtype, shape

    # -- the wire format -----------------------------------------------------------------------------------------------

    def _fields(
        self, start: int, end: int, wanted: Mapping[int, int | None], once: Mapping[int, str] = MappingProxyType({})
    ) -> Iterator[tuple[int, int, int, int]]:
        """Field number, wire type, start and end of the content; of a varint the value stands in place of the start.

        Args:
            wanted: fields that are given, with the wire type that they must have; None: any.
            once: fields that may be there once, and what they are.
        """
        data, seen = self._data, set[int]()
        while start < end:
            self._count()
            begin, tag = start, data[start]
            start += 1
            if tag >= 0x80:
                tag, start = self._varint(start - 1, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
                raise ValueError("it is not ONNX")
            if wire == _VARINT:
                at, start = self._varint(start, end)
                to = at
            else:
                length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
                if wire == _BYTES:
                    length, start = self._varint(start, end)
                if length > end - start:
                    raise ValueError("it is cut short, or not ONNX")
                at = start
                to = start = start + length
            if number not in wanted:
                continue
            if wanted[number] not in (None, wire):
                raise ValueError("it is not ONNX")
            if number in once:
                if number in seen:
                    raise ValueError(f"it has a {once[number]} in two parts")
                seen.add(number)
            self._begin = begin
            yield number, wire, at, to

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has more than {MAX_FIELDS} fields")

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if start >= end:
                break
            byte = self._data[start]
            start += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, start
        raise ValueError("it is cut short, or not ONNX")

    def _integers(self, wire: int, start: int, end: int) -> list[int]:
        """A repeated int64, packed or one by one."""
        if wire == _VARINT:
            return [_signed(start)]
        if wire != _BYTES:
            raise ValueError("it is not ONNX")
        found: list[int] = []
        while start < end:
            self._count()
            value, start = self._varint(start, end)
            found.append(_signed(value))
        return found

    def _text(self, start: int, end: int) -> str:
        try:
            return self._data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("it has a name that is not UTF-8") from None


def _check_rank(sizes: int) -> None:
    if sizes > MAX_RANK:
        raise ValueError(f"it has a tensor of more than {MAX_RANK} sizes")


def _check_values(tensor: _Tensor, raw: int | None, size: int) -> None:
    """A tensor's sizes are those of the values in it: a library would allocate what the sizes say."""
    # `raw`: bytes of its raw values. Of typed ones, in a message of `size` bytes, each takes a byte at least, or half
    # of one in 4 bits.
    count = prod(tensor.dims)
    bits = _BITS.get(tensor.elem_type)
    fits = count <= 2 * size if raw is None or bits is None else raw == -(-count * bits // 8)
    if min(tensor.dims, default=0) < 0 or not fits:
        raise ValueError(f"tensor {tensor.name[:80]!r} has other sizes than its values")


def _external(tensor: _Tensor, place: tuple[int, int]) -> ExternalTensor:
    entries = tensor.entries or {}
    shown = tensor.name[:80]
    if tensor.elem_type not in _BITS or any(size < 0 for size in tensor.dims):
        raise ValueError(f"tensor {shown!r} cannot have its values in another file")
    nbytes = (prod(tensor.dims) * _BITS[tensor.elem_type] + 7) // 8
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise ValueError(f"the {key} of tensor {shown!r} in its file is no number")
    if int(entries.get("length", nbytes)) != nbytes:
        raise ValueError(f"tensor {shown!r} takes {nbytes} bytes, and {entries['length']} in its file")
    if not entries.get("location"):
        raise ValueError(f"tensor {shown!r} does not say in which file its values lie")
    offset = int(entries.get("offset", "0"))
    return ExternalTensor(tensor.name, entries["location"], offset, nbytes, tensor.elem_type, tensor.dims, place)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
