"""The yardstick of presets: how far a call ends from the converged trajectory of the same noise.

A sampler solves an equation, and its error is its distance from the solution: the same noise, photo, prompt and
guidance on so many steps that more of them change nothing. What the solutions are is kept on disk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...kernels.ddim import SchedulerConfig
from ...runtime.bundle.manifest import graph_sha256
from ...runtime.files.guarded_read import RECORD, parse_json, read_text
from ...runtime.files.replace_files import replacing
from ...runtime.media.listing import ListedFile
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.presets import PUBLISHED
from ..bench.statistics import Interval, ratio_interval
from .measures import mean_squared_errors, psnr, temporal_flickering
from .timesteps import Trajectory, spaced_timesteps

GUIDANCES = (1.0, 7.5)
"""Off, and the published one: the worse of the two counts."""
CONVERGED_STEPS = 40


@dataclass(frozen=True)
class Way:
    """One way to sample."""

    name: str
    scheduler: str
    steps: int
    timesteps: tuple[int, ...] | None = None

    @classmethod
    def of_preset(cls, name: str, preset: Mapping[str, Any]) -> Way:
        return cls(name, preset["scheduler"], preset["num_inference_steps"], preset.get("timesteps"))

    @property
    def options(self) -> dict[str, Any]:
        """As a preset names them."""
        options = {"scheduler": self.scheduler, "num_inference_steps": self.steps, "timesteps": self.timesteps}
        return {**options, "guidance_interval": (0.0, 1.0)}


EXACT = Way("exact", PUBLISHED["scheduler"], PUBLISHED["num_inference_steps"])


@dataclass(frozen=True)
class Case:
    """A photo, what happens in it, and the seed of the noise."""

    image: Path
    prompt: str
    seed: int

    @classmethod
    def of_listing(cls, rows: Sequence[ListedFile], seeds: int) -> list[Case]:
        """Every photo of a listing with the seeds from 0."""
        return [cls(row.path, row.caption, seed) for row in rows for seed in range(seeds)]


@dataclass(frozen=True)
class Score:
    """What became of one case. Frame 0, which is the photo in every run, does not count in distances."""

    error: float
    """Relative L2 of the final latents to the converged ones."""
    to_exact: float
    """Relative L2 of the final latents to those of :data:`EXACT`."""
    psnr: float
    """Of the frames against the converged ones, dB; at most 100."""
    flickering: float
    """``temporal_flickering`` of the frames over that of the converged ones."""


@dataclass(frozen=True)
class Summary:
    """A way over several cases with one guidance scale: medians."""

    way: Way
    guidance: float
    scores: tuple[Score, ...]
    ratio: float
    """Its error over that of :data:`EXACT`."""
    interval: Interval | None
    """Of the ratio, with five cases or more."""

    def median(self, name: str) -> float:
        return float(np.median([getattr(score, name) for score in self.scores]))


class Yardstick:
    """Runs cases, keeps on disk what it computed, and measures.

    Args:
        animate: the bundle.
        folder: what is kept; a later run of the same bundle goes on from there.
        on_video: told of each video before it is generated, and of each that was kept.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, animate: ImageToVideo, folder: Path, on_video: Callable[[], object] = lambda: None) -> None:
        self._animate, self._folder, self._on_video = animate, folder, on_video
        self.config = SchedulerConfig.from_dict(animate.bundle.manifest.scheduler)
        timesteps = spaced_timesteps("exponential", self.config, CONVERGED_STEPS)
        self.converged = Way("converged", "deis", CONVERGED_STEPS, timesteps)
        self._kept: dict[str, dict[str, NDArray[Any]]] = {}
        self._hashes: dict[Path, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'the folder "{folder}" cannot be made ({error.strerror}): choose another one.') from None

    @cached_property
    def unet_sha256(self) -> str:
        manifest = self._animate.bundle.manifest
        return graph_sha256(manifest, manifest.stages["unet"])

    def trajectory(self, case: Case, guidance: float) -> Trajectory:
        """The converged run's, in units of the error that :data:`EXACT` has there."""
        kept = self._video(self.converged, case, guidance)
        timesteps = tuple(int(timestep) for timestep in kept["timesteps"])
        return Trajectory(timesteps, kept["products"], self.score(EXACT, case, guidance).error)

    def score(self, way: Way, case: Case, guidance: float) -> Score:
        """Measure one case, or take what was measured before."""
        path = self._folder / f"{self._key(way, case, guidance)}.json"
        if path.exists():
            self._on_video()
            try:
                return Score(**parse_json(read_text(path, RECORD)))
            except (TypeError, ValueError):
                path.unlink()  # measured again
        solution, exact = (self._video(kept, case, guidance) for kept in (self.converged, EXACT))
        video = exact if way.options == EXACT.options else self._generate(way, case, guidance)
        squares = mean_squared_errors(video["frames"][1:], solution["frames"][1:])
        score = Score(
            distance(video["latents"], solution["latents"]),
            distance(video["latents"], exact["latents"]),
            min(100.0, psnr(float(squares.mean()))),
            temporal_flickering(video["frames"]) / temporal_flickering(solution["frames"]),
        )
        self._write(path, lambda new: new.write_text(json.dumps(asdict(score)), encoding="utf-8"))
        return score

    def summary(self, way: Way, cases: Sequence[Case], guidance: float) -> Summary:
        """A way beside :data:`EXACT` over the same cases."""
        own, exact = ([self.score(which, case, guidance) for case in cases] for which in (way, EXACT))
        above, below = ([score.error for score in scores] for scores in (own, exact))
        ratio = float(np.median(above) / np.median(below))
        return Summary(way, guidance, tuple(own), ratio, ratio_interval(above, below, paired=True))

    def worst(self, way: Way, cases: Sequence[Case]) -> float:
        """The larger of its ratios at :data:`GUIDANCES`."""
        return max(self.summary(way, cases, guidance).ratio for guidance in GUIDANCES)

    def seed_distance(self, cases: Sequence[Case], guidance: float) -> float | None:
        """Median distance of converged videos of one photo and two seeds; None where no photo has two."""
        found = [
            distance(*(self._video(self.converged, case, guidance)["latents"] for case in (one, other)))
            for one, other in itertools.pairwise(cases)
            if (one.image, one.prompt) == (other.image, other.prompt)
        ]
        return float(np.median(found)) if found else None

    def _video(self, way: Way, case: Case, guidance: float) -> dict[str, NDArray[Any]]:
        """A video that others are measured against: kept in memory and on disk."""
        key = self._key(way, case, guidance)
        if key not in self._kept:
            path = self._folder / f"{key}.npz"
            if path.exists():
                self._on_video()
                try:
                    with np.load(path, allow_pickle=False) as stored:
                        self._kept[key] = dict(stored)
                except (OSError, ValueError, EOFError):
                    raise UserError(f'"{path}" cannot be read: delete it, and it is computed again.') from None
            else:
                made = self._kept[key] = self._generate(way, case, guidance)
                self._write(path, lambda new: _save(new, made))
        return self._kept[key]

    def _generate(self, way: Way, case: Case, guidance: float) -> dict[str, NDArray[Any]]:
        self._on_video()
        steps: list[NDArray[np.float32]] = []
        is_converged = way == self.converged
        video = self._animate(
            case.image,
            case.prompt,
            seed=case.seed,
            guidance_scale_txt=guidance,
            callback=lambda state: steps.append(state.latents.copy()) if is_converged else None,
            **way.options,  # type: ignore[arg-type]
        )
        made: dict[str, NDArray[Any]] = {"latents": video.latents, "frames": video.frames[0]}
        if is_converged:
            assert way.timesteps is not None
            trajectory = Trajectory.of_run(self.config, way.timesteps, np.stack(steps))
            made |= {"timesteps": np.array(trajectory.timesteps), "products": trajectory.products}
        return made

    def _key(self, way: Way, case: Case, guidance: float) -> str:
        if case.image not in self._hashes:
            self._hashes[case.image] = hashlib.sha256(case.image.read_bytes()).hexdigest()
        choice = self._animate.backend
        parts = [self._animate.bundle.digest, choice.backend.name, choice.precision, self._hashes[case.image]]
        text = json.dumps([*parts, case.prompt, case.seed, guidance, way.options])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            with replacing([path]) as (new,):
                write(new)
        except OSError as error:
            raise UserError(f'"{path}" cannot be written ({error.strerror}): check space and permissions.') from None


def _save(path: Path, arrays: dict[str, Any]) -> None:
    # NumPy appends .npz to a name that ends otherwise, but not to an open file.
    with path.open("wb") as file:
        np.savez(file, **arrays)


def distance(latents: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """|a - b| / |b| over frames 1 and later of [videos, c, f, h, w]."""
    a, b = (x[:, :, 1:].astype(np.float64) for x in (latents, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
