"""Sizes an engine is built for: fixed ones by default, a profile for each guidance batch, ranges where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ...kernels.vae import FRAMES_AT_ONCE
from ...runtime.bundle.manifest import ModelSpec, ProfileSpec, ShapeRange, StageSpec, TensorSpec
from ...runtime.session import dynamic_size, resolve_shape

RANGE_NAMES = ("rows", "height", "width")
Range = tuple[int, ...]
"""Smallest, usual and largest size; the kernels are chosen for the usual one."""


def parse_ranges(entries: Sequence[str], model: ModelSpec) -> dict[str, Range]:
    """``--dynamic height=256:320:512``: named ranges, pixels or rows, smallest, usual and largest.

    Raises:
        UserError: unknown or repeated name, no three rising numbers, or sizes the bundle does not have.
    """
    found: dict[str, Range] = {}
    for entry in entries:
        name, _, numbers = entry.partition("=")
        parts = numbers.split(":")
        # No size has more digits, and Python itself refuses to read some thousands of them.
        are_numbers = all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts)
        if name not in RANGE_NAMES or len(parts) != 3 or not are_numbers:
            shown = entry if len(entry) <= 60 else entry[:60] + "..."
            raise UserError(
                f"--dynamic {shown!r} is not a range: write one of {', '.join(RANGE_NAMES)} with smallest, usual and "
                "largest, such as height=256:320:512."
            )
        if name in found:
            raise UserError(f"--dynamic {name} is given twice: give one range for each of {', '.join(RANGE_NAMES)}.")
        found[name] = tuple(map(int, parts))
        _check_range(name, found[name], model)
    return found


def _check_range(name: str, sizes: Range, model: ModelSpec) -> None:
    multiple, most = (1, 64) if name == "rows" else (model.dynamic_size_multiple, 8192)
    if name == "rows" and model.rows is not None:
        raise UserError(
            f"--dynamic rows does not fit: this bundle's batch is fixed at {model.rows} rows: export it again."
        )
    if multiple is None:
        raise UserError(
            f"--dynamic {name} does not fit: this bundle's size is fixed at {model.width}x{model.height}: "
            "export it with --dynamic."
        )
    if not 1 <= sizes[0] <= sizes[1] <= sizes[2] <= most or any(size % multiple for size in sizes):
        step = f", multiples of {multiple}" if multiple > 1 else ""
        raise UserError(
            f"--dynamic {name}={':'.join(map(str, sizes))} does not fit: "
            f"give three rising numbers from 1 to {most}{step}."
        )


def check_batches(batches: Sequence[int], ranges: Mapping[str, Range], model: ModelSpec) -> None:
    """Refuse guidance batches that no engine of a bundle can have.

    Raises:
        UserError: not of 1, 2 and 3, beside a range of rows, or of a bundle with one batch.
    """
    known = sorted(set(BRANCHES.values()))
    if not batches:
        return
    if not set(batches) <= set(known):
        raise UserError(
            f"--batches {','.join(map(str, batches))[:60]} does not fit: name guidance batches of 1 (no guidance), "
            "2 (text) and 3 (text and image) rows, such as 2 or 1,2."
        )
    if "rows" in ranges:
        raise UserError("--batches and --dynamic rows both say which batches there are: give one of them.")
    if model.rows is not None:
        raise UserError(f"--batches does not fit: this bundle's batch is fixed at {model.rows} rows: leave it out.")


@dataclass(frozen=True)
class EngineShapes:
    """A stage's tensors as its engine has them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[ProfileSpec, ...]
    """Empty where every size is fixed; one without inputs, that says which batch, where only the engine fixes it."""

    @property
    def smallest_batch(self) -> int:
        """Of all profiles; 1 where there are none."""
        return min((sizes.minimum[0] for p in self.profiles for sizes in p.inputs.values()), default=1)


def engine_shapes(
    stage: StageSpec, model: ModelSpec, asked: Mapping[str, Range], wanted: Sequence[int] = ()
) -> EngineShapes:
    """Fix the sizes that have one value, and make a profile for every guidance batch (or one for a range of rows), for
    every number of frames of the decoder, and for each of the bundle's sizes.

    Args:
        stage: the graph, dynamic sizes by name.
        asked: from :func:`parse_ranges`.
        wanted: guidance batches, checked by :func:`check_batches`; none: all. A single one is a fixed size.
    """
    sizes = ((model.height, model.width),) if {"height", "width"} & asked.keys() or not model.sizes else model.sizes
    buckets: list[dict[str, Range]] = []
    for bucket in sizes:
        ranges: dict[str, Range] = {"rows": asked["rows"]} if "rows" in asked else {}
        for axis, default in zip(("height", "width"), bucket, strict=True):
            ranges[axis] = asked.get(axis, (default,) * 3)
            ranges[f"latent_{axis}"] = tuple(size // model.vae_scale_factor for size in ranges[axis])
        buckets.append(ranges)
    # A size that every bucket has is no longer open.
    fixed = {
        name: first[0]
        for name, first in buckets[0].items()
        if {size for one in buckets for size in one[name]} == {first[0]}
    }
    is_open = any("rows" in spec.shape for spec in stage.inputs)
    batches: tuple[int | None, ...] = tuple(sorted(set(wanted or BRANCHES.values())))
    if "rows" in asked or not is_open:
        batches = (None,)
    elif len(batches) == 1:
        fixed["rows"] = wanted[0]
    at_once: list[Range] = [(frames,) * 3 for frames in FRAMES_AT_ONCE]
    if any(asked[axis][0] < asked[axis][2] for axis in {"height", "width"} & asked.keys()):
        # No fused kernel takes one head of one row of open length; one does of an open batch.
        at_once = [(FRAMES_AT_ONCE[0], *FRAMES_AT_ONCE[-1:] * 2)]
    profile_ranges = [
        (rows, ranges | ({} if rows is None else {"rows": (rows,) * 3}) | {"frames": frames})
        for ranges in buckets
        for rows in batches
        for frames in (at_once if any("frames" in spec.shape for spec in stage.inputs) else at_once[:1])
    ]

    def settled(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        def size(name: int | str) -> int | str:
            return dynamic_size(name, fixed) if isinstance(name, str) and name.partition("/")[0] in fixed else name

        return tuple(TensorSpec(spec.name, spec.dtype, tuple(map(size, spec.shape))) for spec in specs)

    inputs = settled(stage.inputs)
    free = [spec for spec in inputs if any(isinstance(size, str) for size in spec.shape)]
    profiles: list[ProfileSpec] = []
    for rows, found in profile_ranges if free or batches != (None,) else ():
        dims = [{name: sizes[part] for name, sizes in found.items()} for part in range(3)]
        inputs_of = {spec.name: ShapeRange(*(resolve_shape(spec, each) for each in dims)) for spec in free}
        if ProfileSpec(rows, inputs_of) not in profiles:  # a stage without pictures has the same for every size
            profiles.append(ProfileSpec(rows, inputs_of))
    return EngineShapes(inputs, settled(stage.outputs), tuple(profiles))
