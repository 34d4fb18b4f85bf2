"""The command that installs a part of this package, as it works where this program was installed from."""

from __future__ import annotations

from pathlib import Path

from ..locations import ROOT

_ROOT = ROOT.resolve()


def install_hint(*extras: str) -> str:
    """``pip install -e ".[rtx]"`` in a clone; with the clone's path where the current folder is another one.

    Where the package was installed from a wheel, the hint adds the extra's packages to it: pip takes the installed
    package itself, which is on no index.
    """
    named = f"[{','.join(extras)}]" if extras else ""
    if not (_ROOT / "pyproject.toml").is_file():
        return f'pip install "consisti2v-rt{named}"'
    try:
        here = Path.cwd().samefile(_ROOT)
    except OSError:
        here = False
    place = "." if here else str(_ROOT)
    return f'pip install -e "{place}{named}"' if extras or not here else "pip install -e ."
