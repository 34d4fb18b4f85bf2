"""The GPUs engines are built for: a name, its compute capabilities, and words for people."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...runtime.errors import UserError
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

    @property
    def is_portable(self) -> bool:
        return any(capability.endswith("+") for capability in self.compute_capabilities)

    @property
    def oldest(self) -> tuple[int, int]:
        """The smallest compute capability, as numbers."""
        return min(_numbers(capability.rstrip("+")) for capability in self.compute_capabilities)


def _one_card(name: str, capability: str, words: str) -> Target:
    return Target(name, words, (capability,), (capability,))


_TARGETS = (
    _one_card("rtx4060", "8.9", "GeForce RTX 4060 (Ada Lovelace)"),
    _one_card("sm80", "8.0", "A100 (Ampere)"),
    _one_card("sm86", "8.6", "GeForce RTX 30 series (Ampere)"),
    _one_card("sm89", "8.9", "GeForce RTX 40 series (Ada Lovelace)"),
    _one_card("sm120", "12.0", "GeForce RTX 50 series (Blackwell)"),
    # TensorRT for RTX's default: one plan for Ampere and every later card, on Linux and Windows.
    Target("rtx", "every RTX card since Ampere, one engine for all", ("8.0+",), ("8.0", "8.9", "9.0", "12.0")),
    Target("current", "the GPU of this machine", (), ()),
)
TARGETS = {target.name: target for target in _TARGETS}

# Tensor cores of older GPUs have no such type.
_OLDEST = {"fp8": ((8, 9), "Ada Lovelace")}


def find_target(name: str, gpu: GpuStatus) -> Target:
    """The target of a name, in capitals or not; "current" becomes the GPU of this machine.

    Args:
        gpu: what was found when a GPU was looked for.

    Raises:
        UserError: unknown, or "current" without a GPU.
    """
    asked, name = name, name.lower()
    if name not in TARGETS:
        raise UserError(f"target {asked!r} is unknown: choose {', '.join(TARGETS)}.")
    if name != "current":
        return TARGETS[name]
    if not gpu.found:
        raise UserError(f"target current needs a GPU ({gpu.reason}): name the card instead, such as --target rtx4060.")
    capability = gpu.compute_capability
    return replace(TARGETS[name], words=gpu.name, compute_capabilities=(capability,), cubins=(capability,))


def check_precision(target: Target, precision: str) -> None:
    """Refuse a number format that the target's GPUs cannot multiply.

    Raises:
        UserError: they cannot.
    """
    oldest, family = _OLDEST.get(precision, ((0, 0), ""))
    if target.oldest < oldest:
        needed = ".".join(map(str, oldest))
        raise UserError(
            f"precision {precision} needs compute capability {needed} ({family}) or later, and target {target.name} "
            f"holds {', '.join(target.compute_capabilities)}: choose fp16 or int8, or a later target."
        )


def _numbers(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
