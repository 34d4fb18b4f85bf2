"""The three measurements: whole videos by stage, one U-Net forward beside the published formulation, and how the time
grows with frames, resolution, batch and steps.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ...runtime.bundle.bundle import Bundle
from ...runtime.child_process import neutral_place
from ...runtime.commands.console import make_console
from ...runtime.files.guarded_read import CONFIG, read_json_object
from ...runtime.install import install_hint
from ...runtime.request.presets import PUBLISHED
from ...runtime.request.settings import GenerationSettings, ResolvedSettings
from .candidates import (
    REFERENCE,
    TORCH,
    Candidate,
    Plan,
    Runner,
    all_fit,
    default_candidates,
    make_inputs,
    measure_interleaved,
    probe_torch,
    published_runner,
    session_dims,
    session_runner,
)
from .machine import bundle_metadata, describe_machine, file_sha256, now, runtime_bytes, versions
from .record import Record, Row, Target
from .tables import AXES, STAGES, VIDEO
from .targets import FRAME_STRIDE, TIMESTEP

DEFAULTS: dict[str, tuple[int, ...]] = {
    "frames": (4, 8, 16, 24),
    "resolution": (64, 128, 192, 256),
    "batch": (1, 2, 3, 4),
    "steps": (1, 2, 4, 8),
}
"""For the tiny model on a processor: seconds, not minutes."""
Candidates = Callable[[Bundle], Sequence[Candidate]]
_GUIDANCE_WORDS = {"none": "no guidance", "text": "text guidance", "both": "text and image guidance"}


def _record(
    kind: str, what: str, metadata: dict[str, Any], settings: dict[str, Any], plan: Plan, targets: list[Target]
) -> Record:
    settings, sizes = {**settings, **dataclasses.asdict(plan)}, {} if kind == "scaling" else runtime_bytes()
    return Record(kind, what, now(), describe_machine(), versions(), metadata, settings, targets, sizes)


# -- whole videos ------------------------------------------------------------------------------------------------------


def measure_latency(
    path: Path, candidates: Candidates, image: Path, prompt: str, options: Mapping[str, Any], plan: Plan
) -> Record:
    """Make videos of a photo and a prompt with options of :class:`GenerationSettings`, and time them.

    Raises:
        UserError: the bundle cannot be used, or the options are not possible.
    """
    bundle = Bundle.open(path, verify=False)
    settings = GenerationSettings.from_options(options).resolved(bundle.manifest)
    work: dict[str, Any] = {"image": str(image.absolute()), "prompt": prompt, "options": dict(options)}
    work["threads"] = plan.threads
    runners = [session_runner(bundle, candidate, "video", **work) for candidate in candidates(bundle)]
    measure_interleaved(runners, plan)
    for runner in runners:
        if runner.able:
            _fill_stages(runner, stage_runs(settings, bundle))
    size, steps = f"{settings.width}x{settings.height}", settings.num_inference_steps
    guidance = _GUIDANCE_WORDS[settings.guidance]
    what = f"one video of {bundle.manifest.model.frames} frames, {size}, {steps} steps, {guidance}"
    image_facts = {"image": image.name, "image_sha256": file_sha256(image), "prompt": prompt}
    used = {**dataclasses.asdict(settings), "guidance": settings.guidance, **image_facts}
    return _record("latency", what, bundle_metadata(bundle), used, plan, [entry.target for entry in runners])


def stage_runs(settings: ResolvedSettings, bundle: Bundle) -> dict[str, int]:
    """How often a video runs a stage, by a reader's name of it; 1 where it is not listed."""
    model, branches, videos = bundle.manifest.model, BRANCHES[settings.guidance], settings.num_videos_per_prompt
    texts, steps = min(branches, 2), settings.num_inference_steps * settings.autoregress_steps
    return {
        "text encoder": texts,
        "conditioning": texts,
        "U-Net": steps * -(-branches * videos // (model.rows or branches)),
        "guidance and scheduler": steps,
        "VAE decoder": videos * settings.total_frames,
    }


def _fill_stages(runner: Runner, runs: Mapping[str, int]) -> None:
    """Rows of the record from the runs; what the first run spent beyond a later one was spent once."""
    target, first = runner.target, runner.first_run
    known = {stage for run in runner.runs for stage in run["parts"]}
    for stage in (*filter(known.__contains__, STAGES), *sorted(known - STAGES.keys())):
        seconds = tuple(run["parts"].get(stage, 0.0) for run in runner.runs)
        name = STAGES.get(stage, stage.replace("_", " "))
        target.rows.append(Row(name, seconds, runs.get(name, 1), first["parts"].get(stage)))
    target.rows.append(Row(VIDEO, runner.seconds, 1, first["seconds"]))
    opened, loading = target.first.pop("load"), first["parts"].get("load", 0.0)
    longer = max(0.0, first["seconds"] - loading - statistics.median(runner.seconds))
    target.first |= {"open": opened, "load": loading, "first_run": longer}


# -- one forward side by side ------------------------------------------------------------------------------------------


def measure_side_by_side(
    path: Path, candidates: Sequence[Candidate] | None, checkpoint: str | None, seed: int, plan: Plan
) -> Record:
    """Time one U-Net forward of every candidate, the same for all, and compare what they give.

    Args:
        candidates: what to measure; None: all. The published formulation in torch eager, float32, is always there.
        checkpoint: what the bundle was exported from; not needed for random weights.
        seed: of the inputs: the guidance branches of one video, as in a step of the loop.
        plan: its `resident` None: all stay loaded where memory allows.

    Raises:
        UserError: the bundle cannot be used.
    """
    bundle = Bundle.open(path, verify=False)
    dims, model, runners = session_dims(bundle.manifest), bundle.manifest.model, []
    wanted = dict.fromkeys([Candidate.parse("torch-eager:fp32"), *(candidates or default_candidates())])
    with tempfile.TemporaryDirectory() as name:
        inputs, torch = Path(name) / "inputs.npz", probe_torch()
        np.savez(inputs, **make_inputs(bundle.manifest, dims, seed, one_video=True))  # type: ignore[arg-type]
        for number, candidate in enumerate(wanted):
            work: dict[str, Any] = {
                "inputs": str(inputs),
                "threads": plan.threads,
                "output": Path(name) / f"{number}.npy",
            }
            if candidate.backend in TORCH:
                explicit = candidates is not None
                runners.append(published_runner(torch, bundle, checkpoint, candidate, explicit, **work))
            else:
                runners.append(session_runner(bundle, candidate, "session", dims=dims, **work))
        if plan.resident is None:
            resident = all_fit(bundle, sum(runner.able for runner in runners))
            plan = dataclasses.replace(plan, resident=resident)
        measure_interleaved(runners, plan)
        _compare(runners)
    what = f"one U-Net forward, batch {dims['rows']}, {model.frames} frames, {model.width}x{model.height}"
    settings = {"seed": seed, "timestep": TIMESTEP, "frame_stride": FRAME_STRIDE}
    targets = [runner.target for runner in runners]
    return _record("side_by_side", what, bundle_metadata(bundle), settings, plan, targets)


def relative_l2(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """|got - expected| / |expected|, in float64."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


def _compare(runners: Sequence[Runner]) -> None:
    """Rows, relative L2 and speed-up, from what was measured."""
    able = {runner.target.name: runner for runner in runners if runner.able}
    reference = able.get(REFERENCE)
    for runner in able.values():
        target, first = runner.target, runner.first_run["seconds"]
        device_seconds = tuple(run["device_seconds"] for run in runner.runs if run["device_seconds"])
        target.rows.append(Row("forward", runner.seconds, 1, first, device_seconds))
        median = statistics.median(runner.seconds)
        target.first["first_run"] = max(0.0, first - median)
        if reference is not None and reference.output is not None and runner.output is not None:
            target.relative_l2 = relative_l2(np.load(runner.output), np.load(reference.output))
            target.speed_up = statistics.median(reference.seconds) / median


# -- scaling -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelMaker:
    """Exports random models into a folder, where they are found again; each in a process of its own.

    An export takes far longer than the measurement behind it, so there are as few as can be, and each leaves open only
    what has to vary: one graph for all of resolution, batch and steps, and one of fixed shape for each number of
    frames, which a graph has built in.

    Args:
        random_weights: tiny, full, or the path of a JSON file with the U-Net's options.
        folder: of the bundles; made if it is not there.
    """

    random_weights: str
    folder: Path

    def check(self) -> None:
        """Refuse what cannot be exported, before the libraries of an export are loaded.

        Raises:
            UserError: options that cannot be read, export libraries that are missing, or a folder that cannot be made.
        """
        unet_options(self.random_weights)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made ({error.strerror}): choose another --models.") from None

    def open_model(self, sizes: bool) -> Bundle:
        """The model that takes any batch; with `sizes` any resolution too."""
        name, flags = ("open-sizes", ["--dynamic"]) if sizes else ("open-batch", ["--guidance", "any"])
        return self._found_or_made(name, self.random_weights, flags)

    def model_of_frames(self, frames: int) -> Bundle:
        """The model for clips of this many frames, every size fixed: batch 2."""
        weights = self.folder / f"{Path(self.random_weights).stem}-frames-{frames}.json"
        options = {**unet_options(self.random_weights), "n_frames": frames}
        weights.write_text(json.dumps(options), encoding="utf-8")
        return self._found_or_made(f"frames-{frames}", str(weights), ["--guidance", "text"])

    def _found_or_made(self, name: str, weights: str, flags: list[str]) -> Bundle:
        """The bundle of an earlier export with these options, or a new one."""
        folder = self.folder / f"{Path(self.random_weights).stem}-{name}"
        named = weights if weights in ("tiny", "full") else Path(weights).name
        if (folder / "bundle.json").exists():
            manifest = Bundle.open(folder, verify=False).manifest
            of_these = manifest.provenance.source.startswith(f"random weights ({named}),")
            if of_these and unet_options(weights).items() <= manifest.model.unet_config.items():
                return Bundle.open(folder, verify=False)
        # Pixels a side of the tiny model where they do not vary; others have the export's own.
        side = ["--height", "128", "--width", "128"] if self.random_weights == "tiny" else []
        place = weights if named == weights else str(Path(weights).absolute())
        self._export(folder, ["--random-weights", place, *flags, *side])
        return Bundle.open(folder, verify=False)

    def _export(self, folder: Path, arguments: list[str]) -> None:
        """Run the command, and show one line when it is done.

        Raises:
            UserError: it failed, with its own reason.
        """
        command = [sys.executable, "-m", __package__.split(".")[0], "export", *arguments, "-o", str(folder.absolute())]
        started, console = time.perf_counter(), make_console(stderr=True)
        with console.status(f"exporting {folder.name}"):
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", **neutral_place())
        if done.returncode != 0:
            said = (done.stdout + done.stderr).split("\n")
            reason = next((line.strip() for line in reversed(said) if line.strip()), "no reason given")
            reason = reason.removeprefix("error: ").rstrip(".")
            raise UserError(f"the model {folder.name} could not be exported ({reason}): mend that, or give a BUNDLE.")
        console.print(f"exported {folder.name} in {time.perf_counter() - started:.0f} s", highlight=False)


def unet_options(random_weights: str) -> dict[str, Any]:
    """The U-Net's options behind a kind of random weights."""
    if random_weights == "full":
        return {}
    if random_weights != "tiny":
        return read_json_object(random_weights, CONFIG)
    try:
        from ...export.random_options import TINY_UNET
    except ImportError as error:
        raise UserError(f"exporting needs {error.name or error}: {install_hint('export')}.") from None
    return TINY_UNET


def measure_scaling(
    maker: ModelMaker,
    path: Path | None,
    usual: tuple[str, str | None],
    points: Mapping[str, Sequence[int]],
    image: Path,
    plan: Plan,
) -> Record:
    """Time every point of every axis, all others at the bundle's own values.

    Args:
        maker: makes the random models that are scaled where there is no
        path: of a bundle. A dynamic one takes resolution, batch and steps; one of open batch takes batch and steps;
            any takes steps; frames need an export each.
        usual: device and precision.
        points: values by axis.

    Raises:
        UserError: the bundle does not take an axis, or an export failed.
    """
    with tempfile.TemporaryDirectory() as name:
        # First, because it may not take a point.
        bundle = _base(path, maker, points)
        candidate = Candidate.usual(bundle, *usual)
        runners: list[Runner] = []
        models = {}
        for axis, value in [(name, number) for name in AXES for number in points.get(name, ())]:
            model = maker.model_of_frames(value) if axis == "frames" else bundle
            if axis == "steps":
                options = {**PUBLISHED, "num_inference_steps": value, "seed": 0}
                work: dict[str, Any] = {"image": str(image.absolute()), "prompt": "", "options": options}
            else:
                rows, side = (value if axis == wanted else None for wanted in ("batch", "resolution"))
                dims, inputs = session_dims(model.manifest, rows, side), Path(name) / f"{axis}-{value}.npz"
                np.savez(inputs, **make_inputs(model.manifest, dims, 0))  # type: ignore[arg-type]
                work = {"inputs": str(inputs), "dims": dims}
            kind = "video" if axis == "steps" else "session"
            runner = session_runner(model, candidate, kind, threads=plan.threads, **work)
            if runner.target.unavailable is not None:
                raise UserError(f"{candidate.name} cannot run this: {runner.target.unavailable.rstrip('.')}.")
            runner.target.name = f"{axis} {value}"
            models[runner.target.name] = bundle_metadata(model)["sha256"]
            runners.append(runner)
        plan = dataclasses.replace(plan, resident=all_fit(bundle, len(runners)))
        measure_interleaved(runners, plan)
        random_weights = None if path else Path(maker.random_weights).name
        settings = {"random_weights": random_weights, "image_sha256": file_sha256(image)}
        target = Target(candidate.name, candidate.backend, candidate.precision, candidate.session.device)
        failed: dict[str, str] = {}
        for runner in runners:
            if runner.target.unavailable is not None:
                failed[runner.target.name] = runner.target.unavailable
            else:
                first = runner.first_run["seconds"]
                target.rows.append(Row(runner.target.name, runner.seconds, 1, first))
                peak = runner.target.host_peak_bytes or 0
                target.host_peak_bytes = max(target.host_peak_bytes or 0, peak)
        target.metadata = {"failed": failed} if failed else {}
        target.unavailable = None if target.rows else "; ".join(failed.values())
        own = bundle.manifest.model
        what = (
            f"one U-Net forward and one video; where it does not vary: {own.frames} frames, "
            f"{own.width}x{own.height}, batch {session_dims(bundle.manifest)['rows']}"
        )
        return _record("scaling", what, {**bundle_metadata(bundle), "models": models}, settings, plan, [target])


def _base(path: Path | None, maker: ModelMaker, points: Mapping[str, Sequence[int]]) -> Bundle:
    """The bundle that all axes but frames are measured on, checked to take every point."""
    if path is not None:
        if points.get("frames"):
            raise UserError(
                "a bundle is built for one number of frames: without BUNDLE a model is exported for each of --frames."
            )
        bundle = Bundle.open(path, verify=False)
    elif any(points.get(axis) for axis in AXES if axis != "frames"):
        bundle = maker.open_model(sizes=bool(points.get("resolution")))
    else:
        bundle = maker.model_of_frames(points["frames"][0])
    model = bundle.manifest.model
    if points.get("batch") and model.rows is not None:
        raise UserError("this bundle's batch is fixed: export it with --guidance any, or scale --steps alone.")
    multiple = model.dynamic_size_multiple
    if points.get("resolution") and multiple is None:
        raise UserError("this bundle's size is fixed: export it with --dynamic, or leave --resolution out.")
    if multiple is not None and (wrong := [side for side in points.get("resolution", ()) if side % multiple]):
        raise UserError(f"--resolution {wrong[0]} does not fit: this model takes multiples of {multiple} pixels.")
    return bundle
