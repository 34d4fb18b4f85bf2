"""Loading a hub model: from a local folder, the local cache, or, where allowed, the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....runtime.install import install_hint
from ..errors import UnavailableError
from .loader import first_line


def from_hub(load: Callable[..., Any], source: str, option: str, *, download: bool, **options: Any) -> Any:
    """``load(source, ...)``, a ``from_pretrained`` of transformers.

    Args:
        load: the library's loader.
        source: hub id, or folder in the hub's layout.
        option: command line option that names another source, for the message.
        download: whether the hub may be asked; else the folder or the local cache must hold everything.

    Raises:
        UnavailableError: it is not there, or does not fit.
    """
    try:
        return load(source, local_files_only=not download, **options)
    except Exception as error:  # hub, file and configuration errors come from several libraries
        if not download and not Path(source).is_dir():
            reason = "is neither a folder nor in the local hub cache"
            advice = f"give a folder with {option}, or allow --download"
        else:
            reason, advice = f"cannot be loaded ({first_line(error)})", f"give another one with {option}"
        raise UnavailableError(f"{source} {reason}: {advice}.") from error


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
