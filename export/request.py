"""What an export is asked for, checked before torch is imported and a model is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from ..kernels.guidance import BRANCHES
from ..runtime.bundle.manifest import DERIVED_FOLDERS, TEXT_ATTENTIONS, Manifest
from ..runtime.bundle.replaced_folder import recover_replaced
from ..runtime.bundle.typed_json import MANIFEST_NAME
from ..runtime.files.guarded_read import MANIFEST, read_text
from ..runtime.request.option_table import MAX_SIDE
from .unet.config import UNetConfig

ANY_GUIDANCE = "any"
MAX_SIZES = 16
# Pixels, where the checkpoint does not say what it was trained at.
_DEFAULT_SIDE = 256


def check_request(
    output: Path, guidance: str, precision: str, text_attention: str = "full", *, force: bool = False
) -> None:
    """What can be refused before the model is looked at.

    Raises:
        UserError: unknown guidance, precision or text attention, or an `output` that cannot become a bundle.
    """
    if guidance not in (ANY_GUIDANCE, *BRANCHES):
        raise UserError(f"guidance {guidance!r} is unknown: choose {', '.join((ANY_GUIDANCE, *BRANCHES))}.")
    if text_attention not in TEXT_ATTENTIONS:
        raise UserError(f"text attention {text_attention!r} is unknown: choose {', '.join(TEXT_ATTENTIONS)}.")
    if precision != "fp32":
        raise UserError(f"precision {precision!r} is not an export precision: the exact export is fp32.")
    check_output(output, force=force)


def check_output(output: Path, *, force: bool = False) -> None:
    """Refuse a folder that a bundle cannot be written to or that holds what an export would lose.

    A bundle whose replacement was killed halfway gets its name back first.

    Args:
        force: replace a bundle with all that was built into it.

    Raises:
        UserError: it is no bundle, cannot be written to, or holds engines or graphs in other precisions.
    """
    try:
        output = output.resolve()
        recover_replaced(output)
        if output.exists() and not (output / MANIFEST_NAME).is_file():
            raise UserError(f"{output} exists and is not a bundle: give another folder.")
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another folder.") from None
    except (ValueError, RuntimeError) as error:
        raise UserError(f"output {str(output)!r} is not a folder's name ({error}): give another one.") from None
    parent = output.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} is not a folder that can be written to: make it first, or give another place.")
    if not force:
        _refuse_derived(output)


def _refuse_derived(output: Path) -> None:
    """Engines, other precisions and calibrations are minutes to hours of work: they are not removed unasked."""
    held = []
    for folder in DERIVED_FOLDERS:
        entries = sorted(path.name for path in (output / folder).glob("[!.]*"))
        held += [f"{folder.rstrip('/')} ({', '.join(entries)})"] if entries else []
    if not held:
        return
    try:
        manifest = Manifest.from_json(read_text(output / MANIFEST_NAME, MANIFEST))
        graphs = [graph for stages in manifest.variants.values() for graph in stages.values()]
        held += [f"a calibration on {graph.calibration.name}" for graph in graphs if graph.calibration is not None]
    except (UserError, OSError, ValueError):
        # A damaged manifest: the folders say enough.
        pass
    raise UserError(
        f"{output} holds {', '.join(held)}, which a new export would remove: give another folder, or --force "
        "to replace the bundle."
    )


def check_frames(config: UNetConfig, frames: int | None) -> None:
    """Refuse another number of frames than the model's own.

    Raises:
        UserError: with the model's.
    """
    if frames is not None and frames != config.n_frames:
        raise UserError(f"frames {frames} does not fit: this model is built for clips of {config.n_frames} frames.")


def check_cache_branch(config: UNetConfig, cache_branch: int | None) -> None:
    """Refuse a branch that the U-Net does not have.

    Raises:
        UserError: with the branches there are.
    """
    last = config.skip_count - 2
    if cache_branch is not None and not 0 <= cache_branch <= last:
        raise UserError(f"cache branch {cache_branch} is not possible with this model: give 0 (cheapest) to {last}.")


def size_multiple(config: UNetConfig, vae_scale_factor: int, dynamic: bool) -> int:
    """The number of pixels that both sides must be multiples of."""
    return vae_scale_factor * (2 ** (config.levels - 1) if dynamic else 1)


def parse_sizes(text: str, config: UNetConfig, vae_scale_factor: int) -> tuple[tuple[int, int], ...]:
    """``256x256,512x320``: width and height of each size -> (height, width) in pixels, the default first.

    Raises:
        UserError: no such list, a size twice, or a side that the model cannot have.
    """
    sizes = []
    for part in text.split(","):
        sides = part.strip().lower().split("x")
        # No side has more digits, and Python itself refuses to read some thousands of them.
        if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
            raise UserError(f"--sizes {part[:40]!r} is no size: give width x height with commas, as 256x256,512x320.")
        height, width = settle_size(config, vae_scale_factor, int(sides[1]), int(sides[0]), dynamic=True)
        if (height, width) in sizes:
            raise UserError(f"--sizes names {width}x{height} twice: give each size once.")
        sizes.append((height, width))
    if len(sizes) > MAX_SIZES:
        raise UserError(f"--sizes has {len(sizes)} sizes: give at most {MAX_SIZES}, each of which is a set of engines.")
    return tuple(sizes)


def settle_size(
    config: UNetConfig, vae_scale_factor: int, height: int | None, width: int | None, dynamic: bool
) -> tuple[int, int]:
    """Height and width in pixels; a side that is not given is the one that the model was trained at.

    Raises:
        UserError: a side that the model cannot have.
    """
    multiple = size_multiple(config, vae_scale_factor, dynamic)
    sides = config.sample_sides
    defaults = (_DEFAULT_SIDE, _DEFAULT_SIDE) if sides is None else tuple(side * vae_scale_factor for side in sides)
    settled = []
    for name, given, default in zip(("height", "width"), (height, width), defaults, strict=True):
        size = default if given is None else given
        if not multiple <= size <= MAX_SIDE or size % multiple:
            kind = "a dynamic export of this model" if dynamic else "this model"
            own = ", the checkpoint's own sample size," if given is None else ""
            raise UserError(
                f"{name} {size}{own} does not fit: {kind} takes multiples of {multiple} pixels, up to {MAX_SIDE}."
            )
        settled.append(size)
    return settled[0], settled[1]
