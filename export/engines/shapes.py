"""Sizes an engine is built for: fixed ones by default, a profile for each guidance batch, ranges where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ...runtime.bundle.manifest import ModelSpec, ProfileSpec, ShapeRange, StageSpec, TensorSpec

RANGE_NAMES = ("rows", "height", "width")
_MOST_ROWS = 64


@dataclass(frozen=True)
class Range:
    """Sizes from `minimum` to `maximum`; the kernels are chosen for `optimum`."""

    minimum: int
    optimum: int
    maximum: int

    @property
    def is_fixed(self) -> bool:
        return self.minimum == self.maximum

    def over(self, factor: int) -> Range:
        return Range(self.minimum // factor, self.optimum // factor, self.maximum // factor)


Ranges = Mapping[str, Range]
"""By the name of a dynamic size: rows, height, width, latent_height, latent_width."""


def parse_ranges(entries: Sequence[str], model: ModelSpec) -> dict[str, Range]:
    """``--dynamic height=256:320:512``: named ranges, pixels or rows, smallest, usual and largest.

    Raises:
        UserError: unknown or repeated name, no three rising numbers, or sizes the bundle does not have.
    """
    found: dict[str, Range] = {}
    for entry in entries:
        name, _, numbers = entry.partition("=")
        parts = numbers.split(":")
        if name not in RANGE_NAMES or len(parts) != 3 or not all(map(_is_number, parts)):
            shown = entry if len(entry) <= 60 else entry[:60] + "..."
            raise UserError(
                f"--dynamic {shown!r} is not a range: write one of {', '.join(RANGE_NAMES)} with smallest, usual and "
                "largest, such as height=256:320:512."
            )
        if name in found:
            raise UserError(f"--dynamic {name} is given twice: give one range for each of {', '.join(RANGE_NAMES)}.")
        found[name] = Range(*map(int, parts))
        _check_range(name, found[name], model)
    return found


def _is_number(text: str) -> bool:
    # No size has more digits, and Python itself refuses to read some thousands of them.
    return text.isascii() and text.isdigit() and len(text) <= 9


def _check_range(name: str, sizes: Range, model: ModelSpec) -> None:
    if name == "rows":
        if model.rows is not None:
            raise UserError(
                f"--dynamic rows does not fit: this bundle's batch is fixed at {model.rows} rows: export it again."
            )
        multiple, most = 1, _MOST_ROWS
    else:
        if model.dynamic_size_multiple is None:
            raise UserError(
                f"--dynamic {name} does not fit: this bundle's size is fixed at {model.width}x{model.height}: "
                "export it with --dynamic."
            )
        multiple, most = model.dynamic_size_multiple, 8192
    rising = 1 <= sizes.minimum <= sizes.optimum <= sizes.maximum <= most
    if not rising or any(size % multiple for size in (sizes.minimum, sizes.optimum, sizes.maximum)):
        step = f", multiples of {multiple}" if multiple > 1 else ""
        raise UserError(
            f"--dynamic {name}={sizes.minimum}:{sizes.optimum}:{sizes.maximum} does not fit: "
            f"give three rising numbers from 1 to {most}{step}."
        )


def size_choices(model: ModelSpec, asked: Mapping[str, Range]) -> list[tuple[int | None, dict[str, Range]]]:
    """Every set of sizes a U-Net engine takes, as (guidance batch, ranges): one for each batch, or one for a range."""
    ranges: dict[str, Range] = {}
    for axis, default in (("height", model.height), ("width", model.width)):
        ranges[axis] = asked.get(axis, Range(default, default, default))
        ranges[f"latent_{axis}"] = ranges[axis].over(model.vae_scale_factor)
    if "rows" in asked:
        return [(None, ranges | {"rows": asked["rows"]})]
    return [(rows, ranges | {"rows": Range(rows, rows, rows)}) for rows in sorted(set(BRANCHES.values()))]


@dataclass(frozen=True)
class EngineShapes:
    """A stage's tensors as its engine has them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[ProfileSpec, ...]
    """Empty where every size is fixed."""

    @property
    def smallest_batch(self) -> int:
        """Of all profiles; 1 where there are none."""
        return min((sizes.minimum[0] for p in self.profiles for sizes in p.inputs.values()), default=1)


def engine_shapes(stage: StageSpec, model: ModelSpec, asked: Mapping[str, Range]) -> EngineShapes:
    """Fix the sizes that have one value, and make profiles for the others.

    Args:
        stage: the graph, dynamic sizes by name.
        asked: from :func:`parse_ranges`.
    """
    used = {size for spec in stage.inputs for size in spec.shape if isinstance(size, str)}
    choices = size_choices(model, asked)
    fixed = {
        name: choices[0][1][name].optimum
        for name in choices[0][1]
        if all(ranges[name].is_fixed and ranges[name] == choices[0][1][name] for _, ranges in choices)
    }

    def settled(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(s.name, s.dtype, tuple(fixed.get(str(size), size) for size in s.shape)) for s in specs)

    inputs = settled(stage.inputs)
    free = [spec for spec in inputs if any(isinstance(size, str) for size in spec.shape)]
    if "rows" not in used:
        choices = choices[:1]
    profiles = tuple(
        ProfileSpec(rows if "rows" in used else None, {spec.name: _shape_range(spec, ranges) for spec in free})
        for rows, ranges in choices
        if free
    )
    return EngineShapes(inputs, settled(stage.outputs), profiles)


def _shape_range(spec: TensorSpec, ranges: Ranges) -> ShapeRange:
    def shape(part: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else getattr(ranges[size], part) for size in spec.shape)

    return ShapeRange(shape("minimum"), shape("optimum"), shape("maximum"))
