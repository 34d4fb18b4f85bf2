"""The random models that a scaling is measured on, made by ``consisti2v export`` in processes of their own.

An export takes far longer than the measurement behind it, so there are as few as can be, and each leaves open only
what has to vary: one graph for all of resolution, batch and steps, and one of fixed shape for each number of frames,
which a graph has built in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.child_process import neutral_place
from ...runtime.install import install_hint
from .bundle_facts import open_bundle

TINY_SIDE = 128
"""Pixels a side of the tiny model where they do not vary; others have the export's own."""


@dataclass(frozen=True)
class ModelMaker:
    """Exports models into a folder, where they are found again.

    Args:
        random_weights: tiny, full, or the path of a JSON file with the U-Net's options.
        folder: of the bundles; made if it is not there.
    """

    random_weights: str
    folder: Path
    console: Console

    def check(self) -> None:
        """Refuse what cannot be exported, before the libraries of an export are loaded.

        Raises:
            UserError: options that cannot be read, export libraries that are missing, or a folder that cannot be made.
        """
        _options(self.random_weights)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made ({error.strerror}): choose another --models.") from None

    def open_model(self, sizes: bool) -> Bundle:
        """The model that takes any batch; with `sizes` any resolution too."""
        name, flags = ("open-sizes", ["--dynamic"]) if sizes else ("open-batch", ["--guidance", "any"])
        return self._found_or_made(name, self.random_weights, _options(self.random_weights), flags)

    def model_of_frames(self, frames: int) -> Bundle:
        """The model for clips of this many frames, every size fixed: batch 2."""
        options = {**_options(self.random_weights), "n_frames": frames}
        weights = self.folder / f"{self._kind}-frames-{frames}.json"
        weights.write_text(json.dumps(options), encoding="utf-8")
        return self._found_or_made(f"frames-{frames}", str(weights), options, ["--guidance", "text"])

    @property
    def _kind(self) -> str:
        return Path(self.random_weights).stem

    def _found_or_made(self, name: str, weights: str, options: dict[str, Any], flags: list[str]) -> Bundle:
        folder = self.folder / f"{self._kind}-{name}"
        kept = _kept(folder, weights, options)
        if kept is not None:
            return kept
        side = ["--height", str(TINY_SIDE), "--width", str(TINY_SIDE)] if self.random_weights == "tiny" else []
        named = weights if weights in ("tiny", "full") else str(Path(weights).absolute())
        self._export(folder, ["--random-weights", named, *flags, *side])
        return open_bundle(folder)

    def _export(self, folder: Path, arguments: list[str]) -> None:
        """Run the command, showing its last line while it works and one line when it is done.

        Raises:
            UserError: it failed, with its own reason.
        """
        command = [sys.executable, "-m", __package__.split(".")[0], "export", *arguments]
        command += ["-o", str(folder.absolute())]
        started = time.perf_counter()
        said: deque[str] = deque(maxlen=1)
        status = self.console.status(f"exporting {folder.name}: loading torch")
        # One pipe for both, or a full one would stop the child.
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            **neutral_place(),
        )
        with status, child as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.strip():
                        said.append(line.strip())
                        status.update(f"exporting {folder.name}: {line.split('  ')[0].strip()} done")
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            reason = (said[0] if said else "no reason given").removeprefix("error: ").rstrip(".")
            raise UserError(f"the model {folder.name} could not be exported ({reason}): mend that, or give a BUNDLE.")
        self.console.print(f"exported {folder.name} in {time.perf_counter() - started:.0f} s", highlight=False)


def _kept(folder: Path, weights: str, options: dict[str, Any]) -> Bundle | None:
    """The bundle of an earlier export with these options; None where there is none, or it is of another model."""
    try:
        bundle = open_bundle(folder)
    except UserError:
        return None
    name = weights if weights in ("tiny", "full") else Path(weights).name
    of_these = bundle.manifest.provenance.source.startswith(f"random weights ({name}),")
    config = bundle.manifest.model.unet_config
    return bundle if of_these and all(config.get(key) == value for key, value in options.items()) else None


def _options(random_weights: str) -> dict[str, Any]:
    """The U-Net's options behind a kind of random weights."""
    if random_weights == "full":
        return {}
    if random_weights == "tiny":
        try:
            from ...export.random_options import TINY_UNET
        except ImportError as error:
            raise UserError(f"exporting needs {error.name or error}: {install_hint('export')}.") from None
        return TINY_UNET
    try:
        options = json.loads(Path(random_weights).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--random-weights {random_weights} is not a readable JSON file ({error}).") from None
    if not isinstance(options, dict):
        raise UserError(f"--random-weights {random_weights} does not hold a JSON object of U-Net options.")
    return options
