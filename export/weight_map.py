"""Which initialiser of a bundle's graphs holds which weight of the checkpoint, and in what form.

Gates are folded into weights, linear weights are stored transposed, "nearest x2, then 3x3" is split into phases: every
form is linear, so what is added to a weight can be added to its forms. The map is found by comparing values when a
bundle is exported, and kept in it as :data:`WEIGHT_MAP`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.graph_source import GraphSource
from ..runtime.files.guarded_read import parse_json

WEIGHT_MAP = "weights.json"
_FLOAT32 = 1
Array = NDArray[Any]


def _phases(weight: Array) -> Array:
    """As :func:`.unet.resampling.phase_kernels`, in NumPy: the same sums in the same order."""
    first, middle, last = (weight[:, :, i] for i in range(3))
    phases = []
    for row in (np.stack([first, middle + last], 2), np.stack([first + middle, last], 2)):
        left, centre, right = (row[..., i] for i in range(3))
        phases.append(np.stack([left, centre + right], 3))
        phases.append(np.stack([left + centre, right], 3))
    return np.stack(phases)


def _phase(number: int) -> Callable[[Array], Array]:
    return lambda weight: _phases(weight)[number]


FORMS: dict[str, Callable[[Array], Array]] = {
    "as stored": lambda weight: weight,
    "transposed": lambda weight: weight.T,
    "without width": lambda weight: weight[..., 0],
    "phases": _phases,
    **{f"phase {number}": _phase(number) for number in range(4)},
}
"""What an initialiser may hold of a weight."""


@dataclass(frozen=True)
class Place:
    """An initialiser that holds a weight in one of the :data:`FORMS`."""

    stage: str
    initializer: str
    form: str


@dataclass
class MappedWeight:
    """One weight of the checkpoint."""

    shape: tuple[int, ...]
    gate: float = 1.0
    """The factor that was folded into it; 0: its layer was dropped, because its gate is closed."""
    places: list[Place] = field(default_factory=list)


def find_places(stage: str, graph: GraphSource, weights: Iterable[tuple[str, Array]]) -> Iterable[tuple[str, Place]]:
    """Every place of these weights in a graph, by comparing values.

    Weights with equal values are found by their names, or not at all: a shared initialiser could be any of them.

    Args:
        stage: its name.
        graph: the graph.
        weights: layer and float32 weight, as the graph has it: gates folded.
    """
    files = graph.weights()
    stored: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
    for tensor in graph.metadata.external:
        if tensor.elem_type == _FLOAT32 and len(tensor.shape) >= 2:
            content = files[tensor.location][tensor.offset : tensor.offset + tensor.nbytes]
            stored.setdefault((tensor.shape, _digest(content)), []).append(tensor.name)
    found: dict[str, set[tuple[str, str]]] = {}
    for layer, weight in weights:
        for form in _forms_of(weight):
            array = np.ascontiguousarray(FORMS[form](weight))
            for name in stored.get((array.shape, _digest(array)), ()):
                found.setdefault(name, set()).add((layer, form))
    for name, holders in found.items():
        named = {(layer, form) for layer, form in holders if name == f"{layer}.weight"}
        # A square weight that is its own transpose, all zeros say, has two forms: which one cannot be told.
        if len(holders) == 1 or (len(named) == 1 and len({layer for layer, _ in holders}) == 1):
            ((layer, form),) = named or holders
            yield layer, Place(stage, name, form)


def _digest(array: Array) -> bytes:
    return hashlib.sha256(array.tobytes()).digest()


def _forms_of(weight: Array) -> list[str]:
    forms = ["as stored"]
    if weight.ndim == 2:
        forms.append("transposed")
    elif weight.ndim == 5:
        forms.append("without width")
    elif weight.ndim == 4 and weight.shape[2:] == (3, 3) and weight.shape[0] == weight.shape[1]:
        forms += ["phases", *(f"phase {number}" for number in range(4))]
    return forms


def map_to_json(mapped: Mapping[str, MappedWeight]) -> str:
    """As it stands in the bundle."""
    entries = {
        layer: {
            "shape": list(weight.shape),
            "gate": weight.gate,
            "places": [[place.stage, place.initializer, place.form] for place in weight.places],
        }
        for layer, weight in sorted(mapped.items())
    }
    return json.dumps(entries, indent=1) + "\n"


def read_weight_map(bundle: Bundle) -> dict[str, MappedWeight]:
    """The map of a bundle.

    Raises:
        UserError: it has none, or a damaged one.
    """
    if WEIGHT_MAP not in bundle.manifest.files:
        raise UserError(
            f"{bundle.path} does not say which weights its graphs hold, as bundles of earlier versions do not: make it "
            "again with 'consisti2v export MODEL -o BUNDLE'."
        )
    try:
        entries = parse_json(bundle.read(WEIGHT_MAP, 1 << 26).tobytes())
        return {layer: _mapped(entry, bundle) for layer, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{WEIGHT_MAP} of {bundle.path} is damaged: export the bundle again.") from None


def _mapped(entry: dict[str, Any], bundle: Bundle) -> MappedWeight:
    places = [Place(stage, initializer, form) for stage, initializer, form in entry["places"]]
    if any(place.stage not in bundle.manifest.stages or place.form not in FORMS for place in places):
        raise ValueError
    return MappedWeight(tuple(int(size) for size in entry["shape"]), float(entry["gate"]), places)
