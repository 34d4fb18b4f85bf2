"""Bundles by name: a folder that is there, a name under the bundle folder, or the demo inside the package."""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from pathlib import Path

import platformdirs

from ...errors import UserError
from ...locations import ASSETS
from .replaced_folder import recover_replaced
from .typed_json import MANIFEST_NAME

HOME_VARIABLE = "CONSISTI2V_HOME"
DEMO = "demo"
DEMO_FOLDER = ASSETS / "demo_bundle"
_NAME = re.compile(r"\w[\w.-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/(?P<model>[A-Za-z0-9][\w.-]*)", re.ASCII)


def bundle_home() -> Path:
    """The folder of bundles that have a name: ``CONSISTI2V_HOME``, or ``consisti2v`` in the user's data folder."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(os.path.expanduser(named))  # noqa: PTH111 - Path.expanduser raises where there is no home
    return platformdirs.user_data_path("consisti2v", appauthor=False)


def named_bundles() -> dict[str, Path]:
    """Every bundle that a name finds, sorted; the demo is always there."""
    found = {DEMO: DEMO_FOLDER}
    with suppress(OSError):
        found |= {f.name: f for f in bundle_home().iterdir() if _NAME.fullmatch(f.name) and _is_bundle(f)}
    return dict(sorted(found.items()))


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """The folder that a path or a name means: a folder that is there, a name of :func:`named_bundles`.

    Raises:
        UserError: nothing is there; the sentence has the command that exports a model of the hub, or the names there
            are.
    """
    try:
        path = Path(bundle)
    except TypeError:
        raise UserError(
            f"a bundle is a path or a name, not {type(bundle).__name__}: pass a folder made by 'consisti2v export', or "
            f"{DEMO!r}."
        ) from None
    name = path.as_posix()
    plain = _NAME.fullmatch(name) is not None
    try:
        recover_replaced(path)
        if path.is_dir():
            return path
        if plain:
            recover_replaced(bundle_home() / name)
            if _is_bundle(bundle_home() / name):
                return bundle_home() / name
            if name == DEMO:
                return DEMO_FOLDER
        if path.exists():
            return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"bundle {path} cannot be read ({reason}): check the path and its permissions.") from None
    if plain:
        names = list(named_bundles())
        close = difflib.get_close_matches(name, names, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"bundle {name} does not exist, neither as a folder here nor in {bundle_home()}: {meant}there are "
            f"{', '.join(names)}; 'consisti2v export' makes others."
        )
    hub = _HUB_ID.fullmatch(name)
    if hub is not None and not path.parent.exists():
        raise UserError(
            f"bundle {name} does not exist; if it is a model of the hub, export it first with "
            f"'consisti2v export {name} -o {hub['model']}' and pass {hub['model']} as the bundle."
        )
    raise UserError(f"bundle {path} does not exist: make one with 'consisti2v export'.")


def check_not_packaged(bundle: Path) -> None:
    """Refuse to change the demo inside the package: an update or a removal of the package would take it away.

    Raises:
        UserError: it is that one; the sentence has the command that copies it.
    """
    if bundle.resolve() != DEMO_FOLDER.resolve():
        return
    copy = f'"{DEMO_FOLDER}" "{bundle_home() / DEMO}"'
    copy = f"xcopy /E /I {copy}" if os.name == "nt" else f'mkdir -p "{bundle_home()}" && cp -r {copy}'
    raise UserError(
        f"the demo bundle belongs to the package and is not changed: copy it with {copy} and build 'demo' again, "
        "which then means the copy."
    )


def _is_bundle(folder: Path) -> bool:
    # os.path answers where Path raises: a folder that may not be looked into.
    return os.path.isfile(folder / MANIFEST_NAME)  # noqa: PTH113
