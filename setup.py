"""Give build tools, type checkers and editors a usual src layout: ``src/consisti2v_rt`` is a link to this folder.

The root of the repository is the import package. Every build and install makes the link; git ignores it.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LINK = ROOT / "src" / "consisti2v_rt"


class BuildPackage(build_py):
    """Leaves this file out of the package; setuptools does so only where it finds it under its own path."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[:2] != ("consisti2v_rt", "setup")]


# In a source distribution the folder is real.
if not (LINK / "__init__.py").is_file():
    LINK.parent.mkdir(exist_ok=True)
    if os.name == "nt":
        # A symbolic link needs a privilege on Windows; a junction does not.
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(LINK))
    else:
        LINK.unlink(missing_ok=True)
        LINK.symlink_to("..", target_is_directory=True)

setup(cmdclass={"build_py": BuildPackage})
