"""What every stage of a bundle is tried on: three seeds, every batch size, texts through the bundle's own encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.vae import FRAMES_AT_ONCE
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import StageSpec, TensorSpec
from ...runtime.session import OnnxCpuSession, resolve_shape
from ...runtime.text import PromptTokenizer

Array = NDArray[Any]
SEEDS = (0, 1, 2)
# One of each per seed: the ends and the middle of a run.
_SCALARS = {"timestep": (981, 501, 1), "frame_stride": (3, 1, 8)}
_PROMPTS = ("a cat turns its head in the sun", "", "time lapse of clouds over a mountain lake, high quality, 4k")


@dataclass(frozen=True)
class Case:
    """One run of a stage."""

    seed: int
    dims: dict[str, int]
    """Sizes of the dynamic dimensions; empty for a static stage."""
    inputs: dict[str, Array]
    """In the types of the float32 graph."""


class Cases:
    """Makes the cases of a bundle's stages; the text is encoded once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._texts: list[dict[str, Array]] = []
        """Per prompt: everything that the text encoder and the conditioning take and give, by name."""

    def of(self, stage: str) -> Iterator[Case]:
        """Inputs are normal numbers where nothing better is known; images stay in [-1, 1]."""
        spec, texts = self._bundle.manifest.stages[stage], self._encoded_texts()
        for seed in SEEDS:
            generator = np.random.default_rng(seed)
            for dims in self.sizes(spec):
                yield Case(seed, dims, {t.name: self._input(t, dims, seed, generator, texts) for t in spec.inputs})

    def sizes(self, spec: StageSpec) -> list[dict[str, int]]:
        """The batch sizes that a stage is tried in, at the bundle's default size; one for a static stage."""
        model = self._bundle.manifest.model
        known = {
            "height": model.height,
            "width": model.width,
            "latent_height": model.height // model.vae_scale_factor,
            "latent_width": model.width // model.vae_scale_factor,
        }
        names = {size for tensor in (*spec.inputs, *spec.outputs) for size in tensor.shape if isinstance(size, str)}
        fixed = {name: known[name] for name in sorted(names & known.keys())}
        tried = {"rows": (1, 2, 3), "frames": FRAMES_AT_ONCE}
        return next(
            ([fixed | {name: size} for size in sizes] for name, sizes in tried.items() if name in names), [fixed]
        )

    def _input(
        self,
        tensor: TensorSpec,
        dims: Mapping[str, int],
        seed: int,
        generator: np.random.Generator,
        texts: list[dict[str, Array]],
    ) -> Array:
        shape = resolve_shape(tensor, dims)
        if tensor.name in texts[seed]:
            rows = [texts[(seed + row) % len(texts)][tensor.name] for row in range(shape[0])]
            return np.concatenate(rows)
        if tensor.name in _SCALARS:
            return np.full(shape, _SCALARS[tensor.name][seed], tensor.dtype)
        values = generator.standard_normal(shape, dtype=np.float32)
        return np.tanh(values) if tensor.name == "image" else values

    def _encoded_texts(self) -> list[dict[str, Array]]:
        if not self._texts:
            tokenizer = PromptTokenizer(self._bundle)
            self._texts = [{"input_ids": tokenizer(prompt)} for prompt in _PROMPTS]
            for stage in ("text_encoder", "conditioning"):
                spec = self._bundle.manifest.stages[stage]
                session = OnnxCpuSession(self._bundle.graph(spec), spec, {})
                for text in self._texts:
                    for name in session.inputs:
                        session.inputs[name][...] = text[name]
                    session.run()
                    text |= {name: array.copy() for name, array in session.outputs.items()}
        return self._texts
