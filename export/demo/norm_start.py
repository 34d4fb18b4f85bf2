"""Norms that pass their input on: their weights undo the mean and scale that were measured on a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Captured(Exception):  # noqa: N818 - ends a forward pass early, no error
    def __init__(self, x: Tensor) -> None:
        self.x = x


def pass_unchanged(norm: nn.Module, run: Callable[[], None], offset: float = 0.0) -> None:
    """Set weight and bias of a norm, in place, so that its output is its input plus `offset`, as far as its statistics
    are the same everywhere.

    Args:
        norm: a ``GroupNorm`` of one group or a ``LayerNorm`` over channels.
        run: a forward pass of the model it belongs to; ended where it reaches the norm.
        offset: added, e.g. to move what follows into the linear range of an activation.
    """

    def capture(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        raise _Captured(arguments[0].detach())

    handle = norm.register_forward_pre_hook(capture)
    try:
        run()
        raise AssertionError("the run did not reach the norm.")
    except _Captured as captured:
        x = captured.x
    finally:
        handle.remove()
    axes = (1, 2, 3) if isinstance(norm, nn.GroupNorm) else (-1,)
    deviation = x.std(axes, correction=0).median()
    mean = x.mean(axes).median()
    assert isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)
    with torch.no_grad():
        norm.weight.fill_(float(deviation))
        norm.bias.fill_(float(mean) + offset)
