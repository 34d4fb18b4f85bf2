"""The GPUs engines are built for: a name, its compute capabilities, and words for people."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError
from ...runtime.gpu.cards import FAMILIES, closest, find_card, is_data_centre, normalised
from ...runtime.gpu.device import GpuStatus


@dataclass(frozen=True)
class Target:
    """What ``--target`` names."""

    name: str
    words: str
    compute_capabilities: tuple[str, ...]
    """GPUs the engines run on: "8.9"; "8.0+" is that one and every later one."""
    cubins: tuple[str, ...]
    """Compute capabilities our own kernels are compiled for; a cubin also runs on later ones of its major version."""
    runs_rtx_engines: bool = True
    """Whether TensorRT for RTX builds for it; where not, TensorRT does."""

    @property
    def is_portable(self) -> bool:
        return any(capability.endswith("+") for capability in self.compute_capabilities)

    @property
    def oldest(self) -> tuple[int, ...]:
        """The smallest compute capability, as numbers."""
        return min(tuple(map(int, capability.rstrip("+").split("."))) for capability in self.compute_capabilities)


def _one_capability(name: str, capability: str, words: str, runs_rtx_engines: bool = True) -> Target:
    rtx = runs_rtx_engines and not is_data_centre(capability)
    return Target(name, words, (capability,), (capability,), rtx)


_TARGETS = (
    # TensorRT for RTX's default: one plan for Ampere and every later card, on Linux and Windows.
    Target("rtx", "every RTX card since Ampere, one engine for all", ("8.0+",), ("8.0", "8.9", "9.0", "12.0")),
    *(
        _one_capability("sm" + capability.replace(".", ""), capability, f"compute capability {capability} ({family})")
        for capability, family in FAMILIES.items()
    ),
)
TARGETS = {target.name: target for target in _TARGETS}
"""All but "current" and the cards, which :mod:`consisti2v_rt.runtime.gpu.cards` lists."""

# Tensor cores of older GPUs have no such type, or TensorRT for RTX no kernels for it there.
_OLDEST = {"bf16": ((8, 0), "Ampere"), "int8": ((8, 0), "Ampere"), "fp8": ((8, 9), "Ada Lovelace")}


def find_target(name: str, gpu: GpuStatus) -> Target:
    """The target of a name; "current" becomes the GPU of this machine.

    Args:
        name: of :data:`TARGETS`, "current", or a card in any spelling: "rtx5090", "NVIDIA GeForce RTX 5090".
        gpu: what was found when a GPU was looked for.

    Raises:
        UserError: unknown, or "current" without a GPU.
    """
    key = normalised(name)
    if key in TARGETS:
        return TARGETS[key]
    if key == "current":
        if not gpu.found:
            raise UserError(
                f"target current needs a GPU ({gpu.reason}): name the card instead, such as --target rtx4060."
            )
        return _one_capability(key, gpu.compute_capability, gpu.name)
    card = find_card(name)
    if card is None:
        raise UserError(
            f"target {name!r} is unknown{closest(name, (*TARGETS, 'current'))}: choose rtx (every RTX card since "
            "Ampere), current, a card such as rtx4060 (docs/gpus.md lists all), or a compute capability such as sm89."
        )
    return _one_capability(card.target, card.compute_capability, card.name, card.runs_rtx_engines)


def check_precision(target: Target, precision: str) -> None:
    """Refuse a number format that the target's GPUs cannot multiply.

    Raises:
        UserError: they cannot.
    """
    oldest, family = _OLDEST.get(precision, ((0, 0), ""))
    if target.oldest < oldest:
        # What the oldest of these GPUs does have.
        smaller = "fp16 or int8" if target.oldest >= _OLDEST["int8"][0] else "fp16"
        raise UserError(
            f"precision {precision} needs compute capability {oldest[0]}.{oldest[1]} ({family}) or later, and target "
            f"{target.name} holds {', '.join(target.compute_capabilities)}: choose {smaller}, or a later target."
        )
