"""``calibrate``: animate a set with the float32 graphs in few steps and note how large the U-Net's activations are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ....runtime.backends import Backend, Choice
from ....runtime.bundle.bundle import Bundle
from ....runtime.bundle.manifest import CalibrationSpec
from ....runtime.bundle.stage_graphs import Availability, has_graphs
from ....runtime.pipeline import ImageToVideo
from ....runtime.request.presets import PUBLISHED
from ....runtime.session import OnnxCpuSession, Session
from ..currency import CALIBRATED_STAGE as STAGE
from ..graph import Graph
from ..quantisation import observed_inputs
from .graph import observe
from .ranges import ActivationRange, ActivationScale
from .samples import CalibrationSet
from .session import ObservedSession

STEPS = 8
"""Denoising steps of each sample, spread over all timesteps as in any short run."""
_VALUES = 32_768
_FEWEST_PER_RUN = 64


@dataclass(frozen=True)
class Calibration:
    """What is known of a stage's activations."""

    spec: CalibrationSpec
    ranges: Mapping[str, ActivationRange]
    """By the name of the value in the float32 graph."""

    def scales(self, elem_type: int) -> dict[str, ActivationScale]:
        """A scale for each."""
        return {name: found.scale(elem_type) for name, found in self.ranges.items()}


def calibration_spec(samples: CalibrationSet) -> CalibrationSpec:
    """What the manifest says of a calibration on this set."""
    return CalibrationSpec(samples.name, samples.sha256, len(samples.samples), STEPS)


def calibrate(
    bundle: Bundle,
    samples: CalibrationSet,
    *,
    on_sample: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Record the inputs of the U-Net's quantised products over whole generations: both branches of guidance, all
    timesteps, latents as they become.

    Args:
        bundle: its float32 graphs are run.
        samples: photos and captions.
        on_sample: number of samples done, of how many.

    Raises:
        UserError: a photo that cannot be read, or a graph that does not load.
    """
    graph = Graph(bundle.graph(bundle.manifest.stages[STAGE], hashed=True))
    quota = max(_VALUES // (len(samples.samples) * STEPS), _FEWEST_PER_RUN)
    observed = observe(graph, observed_inputs(graph), quota)
    ranges = {name: ActivationRange() for name in observed.observed}

    def load(bundle: Bundle, stage: str, dims: Mapping[str, int], threads: int | None, precision: str) -> Session:
        stage_spec = bundle.manifest.stages[stage]
        if stage == STAGE:
            return ObservedSession(observed, stage_spec, dims, threads, ranges)
        return OnnxCpuSession(bundle.graph(stage_spec, hashed=True), stage_spec, dims, threads, lean=True)

    backend = Backend(
        "calibration",
        "calibration",
        "cpu",
        ("fp32",),
        False,
        lambda: Availability(True, "float32, its activations noted"),
        has_graphs,
        load,
    )
    animate = ImageToVideo(bundle, choice=Choice(backend, "fp32", "calibration"))
    for number, (picture, caption) in enumerate(samples.pictures()):
        on_sample(number, len(samples.samples))
        # Guided, whatever the bundle recommends: the ranges have to hold for both branches.
        guidance = PUBLISHED["guidance_scale_txt"]
        animate(picture, caption, num_inference_steps=STEPS, seed=number, guidance_scale_txt=guidance)
    return Calibration(calibration_spec(samples), ranges)
