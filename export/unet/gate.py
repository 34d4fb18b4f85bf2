"""The learned gate of every temporal layer: ``out = alpha * x + (1 - alpha) * (x + h)``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class GatedResidual(nn.Module, ABC):
    """Base of the temporal layers: adds a residual branch, scaled by ``1 - clamp(alpha, 0, 1)``.

    The published code clamps ``alpha`` in place in every forward, a mutation of the weights; here the value is clamped.
    For inference :meth:`fold_gate` moves the factor into the branch's last layer once, and a closed gate (``alpha`` >=
    1) drops the branch. Both leave a state dict that still describes the same function in the published format.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.gate_folded = False
        self.is_identity = False
        self.openness = 1.0
        """The factor that was folded into the last layer; 0: the branch was dropped."""

    def add_branch(self, x: Tensor, branch: Tensor) -> Tensor:
        if self.gate_folded:
            return x + branch
        return x + (1 - self.alpha.clamp(0, 1)) * branch

    def fold_gate(self) -> None:
        """Scale the branch's last layer by ``1 - alpha`` and set ``alpha`` to 0; or mark a closed gate's layer as
        identity.
        """
        with torch.no_grad():
            openness = self.openness = 1 - float(self.alpha.clamp(0, 1))
            if openness == 0.0:
                self.alpha.fill_(1.0)
                self.is_identity = True
            else:
                last = self.last_layer()
                last.weight.mul_(openness)
                if last.bias is not None:
                    last.bias.mul_(openness)
                self.alpha.zero_()
                self.gate_folded = True

    def unfold_gate(self) -> None:
        """Forget the folding; called before other weights are loaded."""
        self.gate_folded = self.is_identity = False
        self.openness = 1.0

    @abstractmethod
    def last_layer(self) -> nn.Linear | nn.Conv3d:
        """The layer whose output is the whole branch."""
