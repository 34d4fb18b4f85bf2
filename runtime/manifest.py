"""``bundle.json``: the contract between export, engine build and runtime, as checked dataclasses.

Read and written with the standard library alone; every mistake is reported by the path of the entry that is wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from .errors import UserError
from .guarded_read import parse_json

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"
STAGES = ("text_encoder", "conditioning", "vae_encoder", "unet", "vae_decoder")
DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "uint8")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a stage."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Sizes; a name stands for a dynamic one (``rows``, ``latent_height``, ...)."""


@dataclass(frozen=True)
class CalibrationSpec:
    """What a graph's 8-bit activations were calibrated on."""

    name: str
    """Of the listing, or "demo"."""
    sha256: str
    """Of its files and captions."""
    samples: int
    steps: int
    """Denoising steps of each sample."""


@dataclass(frozen=True)
class StageSpec:
    """One ONNX graph."""

    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    calibration: CalibrationSpec | None = None
    """None where activations are not in 8 bits."""


@dataclass(frozen=True)
class ShapeRange:
    """Sizes an engine takes for one input."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True)
class ProfileSpec:
    """One optimisation profile of an engine; its place in :attr:`EngineSpec.profiles` is its number in the plan."""

    rows: int | None
    """The guidance batch it is for; None where the stage has no such batch, or a range."""
    inputs: dict[str, ShapeRange]


@dataclass(frozen=True)
class EngineSpec:
    """One engine, built from a stage's ONNX for given GPUs."""

    stage: str
    file: str
    target: str
    """As it was asked for: rtx4060, sm89, rtx, ..."""
    flavour: str
    """tensorrt-rtx or tensorrt."""
    version: str
    """Of the library that built it; no other can load it."""
    precision: str
    compute_capabilities: tuple[str, ...]
    """GPUs it runs on: "8.9"; "8.0+" stands for that one and every later one."""
    onnx_sha256: str
    """Of the ONNX graph and its weights; see :func:`graph_sha256`."""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    """As the engine was built, dynamic sizes by name; a profile says what they may be."""
    profiles: tuple[ProfileSpec, ...] = ()
    facts: str = ""
    """File with what was known at build time: layers, attentions, seconds, memory."""
    stripped: bool = False
    """Without weights: they are taken from the ONNX when it is loaded."""
    platform: str = ""
    """Operating system it runs on: linux or windows; empty: any (TensorRT for RTX)."""


@dataclass(frozen=True)
class KernelSpec:
    """Our own CUDA kernels of one source file, compiled for one compute capability."""

    name: str
    file: str
    compute_capability: str
    source_sha256: str
    entry_points: tuple[str, ...]


@dataclass(frozen=True)
class ModelSpec:
    """What the model takes and makes."""

    frames: int
    """Frames of one clip, the first frame included."""
    height: int
    width: int
    """Pixels. With `dynamic_size_multiple`, the defaults."""
    latent_channels: int
    vae_scale_factor: int
    """Pixels per latent position."""
    vae_scaling_factor: float
    """Latents are VAE latents times this (0.18215 in Stable Diffusion)."""
    rows: int | None
    """Batch of the exported U-Net; None where it is dynamic."""
    guidance: str
    """Guidance a fixed batch was chosen for: text (2 rows), both (3) or none (1); text where it is dynamic."""
    dynamic_size_multiple: int | None
    """Height and width may be any multiple of this many pixels; None: fixed."""
    uses_frame_stride: bool
    trained: bool
    """False for random weights: such a bundle shows that everything runs, and noise."""
    unet_config: dict[str, Any]
    cache_branch: int | None = None
    """The skip at which feature caching cuts; then there is a stage ``unet_shallow``. None: no caching."""
    text_attention: str = "full"
    """full as published, or mean: simplified, with a loss."""


@dataclass(frozen=True)
class TokenizerSpec:
    file: str
    max_length: int
    pad_token_id: int
    pad_token: str


@dataclass(frozen=True)
class FrameInitDefaults:
    """FrameInit settings the model is published with (ConsistI2V, arXiv:2402.04324)."""

    noise_level: int = 850
    filter: str = "gaussian"
    d_s: float = 0.25
    d_t: float = 0.25
    order: int = 4


@dataclass(frozen=True)
class RecommendedSettings:
    """Settings that suit the model, the defaults of a call that names none. None: the published value."""

    guidance_scale_txt: float | None = None
    guidance_scale_img: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, ...] | None = None
    """First and last share of the steps."""
    num_inference_steps: int | None = None
    scheduler: str | None = None
    frame_stride: int | None = None
    known_prompts: tuple[str, ...] | None = None
    """Phrases that the model reacts to, the most usual ones first; None: it takes any text."""
    camera_motions: tuple[str, ...] | None = None
    """Camera motions that the model follows; None: all."""


@dataclass(frozen=True)
class Provenance:
    source: str
    revision: str
    licence: str
    tools: dict[str, str]
    """Versions of the packages that made the bundle."""


@dataclass(frozen=True)
class FileRecord:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The whole of ``bundle.json``."""

    name: str
    model: ModelSpec
    tokenizer: TokenizerSpec
    scheduler: dict[str, Any]
    frame_init: FrameInitDefaults
    stages: dict[str, StageSpec]
    provenance: Provenance
    files: dict[str, FileRecord]
    """Every other file of the bundle, by its path in it."""
    recommended: RecommendedSettings = RecommendedSettings()
    variants: dict[str, dict[str, StageSpec]] = field(default_factory=dict)
    """The same stages in other precisions: precision -> stage -> graph. Their inputs and outputs keep the names."""
    engines: tuple[EngineSpec, ...] = ()
    kernels: tuple[KernelSpec, ...] = ()
    """Compiled kernels, one for each source file and compute capability; every target that has it shares them."""
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check.

        Raises:
            UserError: not JSON, an unknown schema version, an entry missing, unknown or of the wrong kind, a path that
                leaves the bundle, or a stage whose file is not recorded.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise UserError(f"{MANIFEST_NAME} is not valid JSON ({error}): export the bundle again.") from None
        if not isinstance(data, dict):
            raise UserError(f"{MANIFEST_NAME} does not hold a JSON object: export the bundle again.")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{MANIFEST_NAME} has schema version {version!r}, this program reads {SCHEMA_VERSION}: "
                "export the bundle again, or install the version of consisti2v-rt that wrote it."
            )
        manifest: Manifest = _parse(cls, data, "")
        manifest._check()
        return manifest

    def _check(self) -> None:
        needed = STAGES if self.model.cache_branch is None else (*STAGES, "unet_shallow")
        missing = [stage for stage in needed if stage not in self.stages]
        if missing:
            raise UserError(f"{MANIFEST_NAME} has no stage {', '.join(missing)}: export the bundle again.")
        graphs = [stage for stages in (self.stages, *self.variants.values()) for stage in stages.values()]
        paths = [stage.file for stage in graphs] + [kernel.file for kernel in self.kernels]
        for engine in self.engines:
            paths += [engine.file, *([engine.facts] if engine.facts else [])]
        for path in (*paths, self.tokenizer.file, *self.files):
            check_inner_path(path)
            if path not in self.files:
                raise UserError(f"{MANIFEST_NAME} names {path!r} without a hash: export the bundle again.")
        for name, stage in self.stages.items():
            for spec in (*stage.inputs, *stage.outputs):
                if spec.dtype not in DTYPES:
                    raise UserError(f"{MANIFEST_NAME}: tensor {spec.name!r} of stage {name} has dtype {spec.dtype!r}.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Sizes are at least 1, and the factor is a number: JSON as Python reads it has NaN and Infinity."""
        model = self.model
        sizes = {
            "model.frames": model.frames,
            "model.height": model.height,
            "model.width": model.width,
            "model.latent_channels": model.latent_channels,
            "model.vae_scale_factor": model.vae_scale_factor,
            "model.rows": model.rows,
            "model.dynamic_size_multiple": model.dynamic_size_multiple,
            "tokenizer.max_length": self.tokenizer.max_length,
        }
        for name, stage in self.stages.items():
            for kind, specs in (("inputs", stage.inputs), ("outputs", stage.outputs)):
                for spec in specs:
                    fixed = [size for size in spec.shape if isinstance(size, int)]
                    sizes[f"stages.{name}.{kind}: a size of {spec.name}"] = min(fixed, default=1)
        impossible: dict[str, float] = {entry: size for entry, size in sizes.items() if size is not None and size < 1}
        if not (math.isfinite(model.vae_scaling_factor) and model.vae_scaling_factor > 0):
            impossible["model.vae_scaling_factor"] = model.vae_scaling_factor
        for entry, value in impossible.items():
            raise UserError(f"{MANIFEST_NAME}: entry {entry} cannot be {value}: export the bundle again.")


def graph_sha256(manifest: Manifest, stage: StageSpec, *, weights: bool = True) -> str:
    """Identity of an ONNX graph from the recorded hashes of its files, nothing is read.

    Args:
        weights: count the file of its weights too. An engine without weights fits a graph whose weights changed.
    """
    names = [stage.file, *([stage.file + ".data"] if weights else [])]
    hashes = [manifest.files[name].sha256 for name in names if name in manifest.files]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def check_inner_path(path: str) -> None:
    """Refuse a path that is absolute or climbs out of the bundle, on any operating system."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ":" in path or ".." in parts:
        raise UserError(
            f"{MANIFEST_NAME} names {path!r}, which is outside the bundle: do not use this bundle; export it again."
        )


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` from JSON as the annotated type `kind`; `where` is its path, for the message."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(kind, value, where)
    if kind is Any:
        return value
    if origin is dict and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    allowed = arguments if origin in (typing.Union, types.UnionType) else (kind,)
    for option in arguments:
        if isinstance(value, dict) and dataclasses.is_dataclass(option):
            return _parse(option, value, where)
        if isinstance(value, list) and typing.get_origin(option) is tuple:
            return _parse(option, value, where)
    if type(value) in allowed or (value is None and type(None) in allowed):
        return value
    if float in allowed and type(value) is int:
        return float(value)
    shown = json.dumps(value)[:60]
    raise UserError(f"{MANIFEST_NAME}: entry {where.lstrip('.')} has the wrong kind of value: {shown}.")


def _parse_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{MANIFEST_NAME}: entry {where.lstrip('.')} must be an object.")
    hints = typing.get_type_hints(kind)
    entries = {f.name: f for f in dataclasses.fields(kind)}
    for name in value:
        if name not in entries:
            raise UserError(f"{MANIFEST_NAME}: entry {f'{where}.{name}'.lstrip('.')} is unknown.")
    parsed = {}
    for name, entry in entries.items():
        if name in value:
            parsed[name] = _parse(hints[name], value[name], f"{where}.{name}")
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise UserError(f"{MANIFEST_NAME}: entry {f'{where}.{name}'.lstrip('.')} is missing.")
    return kind(**parsed)
