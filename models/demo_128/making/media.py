"""The photos: which files, from which packages, under which licence (``photos.csv``), and fetching them by name.

Nothing of it is kept in the repository. Every photo is CC0, in the public domain, or CC-BY with credit.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from ....errors import UserError


class Photo(NamedTuple):
    """A photo inside a package."""

    package: str
    path: str
    subject: str
    author: str
    licence: str
    held_out: str
    """yes: nothing is fitted on it, it is kept for measuring."""

    @property
    def name(self) -> str:
        return Path(self.path).name

    def file(self, work: Path) -> Path:
        """Where it lies after :func:`fetch`."""
        return work / "media" / self.package / self.path


with (Path(__file__).parent / "photos.csv").open(encoding="utf-8") as _table:
    PHOTOS = [Photo(*row) for row in csv.reader(_table)][1:]
_PIP = {"scikit-image": ["scikit-image==0.25.2", "--only-binary=:all:"]}


def fetch(work: Path) -> None:
    """Download the packages and unpack the photos under ``work/media``; what is there already is kept.

    Python packages come through pip, Debian packages through ``apt-get download``; nothing is installed.

    Raises:
        UserError: a package cannot be had, or no longer holds a file.
    """
    for package in dict.fromkeys(photo.package for photo in PHOTOS):
        wanted = [photo.file(work) for photo in PHOTOS if photo.package == package]
        if all(path.is_file() for path in wanted):
            continue
        target, downloads = work / "media" / package, work / "packages" / package
        for folder in (target, downloads):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        command = ["apt-get", "download", package]
        if package in _PIP:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", ".", *_PIP[package]]
        _run(command, downloads, f"the package {package} cannot be downloaded")
        for archive in downloads.iterdir():
            if archive.suffix == ".whl":
                with zipfile.ZipFile(archive) as wheel:
                    wheel.extractall(target, [name for name in wheel.namelist() if name.startswith("skimage/data/")])
            else:
                command = ["dpkg-deb", "-x", str(archive.resolve()), str(target.resolve())]
                _run(command, target, f"{archive.name} cannot be unpacked")
        shutil.rmtree(downloads)
        for path in wanted:
            if not path.is_file():
                raise UserError(f"the package {package} no longer holds {path.name}: take it out of photos.csv.")


def _run(command: list[str], folder: Path, failure: str) -> None:
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{failure} ({error}): {command[0]} is needed.") from None
    if result.returncode:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise UserError(f"{failure} ({lines[-1] if lines else 'no message'}).")
