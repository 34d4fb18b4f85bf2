"""``bundle.json``: the contract between export, engine build and runtime, as checked dataclasses.

Read and written with the standard library alone; every mistake is reported by the path of the entry that is wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from ...errors import UserError
from ...kernels.frame_init import FILTER_KINDS
from ...kernels.guidance import BRANCHES
from ..files.guarded_read import parse_json
from .digest import digest_of
from .inner_path import check_inner_path
from .onnx_walker import MAX_RANK
from .typed_json import MANIFEST_NAME, NEVER, check_known, parse_typed

SCHEMA_VERSION = 1
STAGES = ("text_encoder", "conditioning", "vae_encoder", "unet", "vae_decoder")
OPTIONAL_STAGES = ("unet_shallow",)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
EXPERIMENTAL = ("int8", "fp8")
"""Until engines in these precisions are timed on a card."""
_FORMER_ENGINE_NAMES = {"flavour": "backend", "facts": "metadata"}
"""Entries of engines as bundles before 0.2 name them."""
DYNAMIC_SIZES = ("rows", "frames", "height", "width", "latent_height", "latent_width")
"""Names of sizes that a graph may leave open, alone or divided as in ``latent_height/2``."""
ACCUMULATORS = ("auto", "fp32")
"""What an engine's float16 products accumulate in: what the library takes, or float32."""
DERIVED_FOLDERS = ("engines/", "variants/", "kernels/")
"""Where ``consisti2v build`` puts what it makes, and makes again."""
TEXT_ATTENTIONS = ("full", "mean")
DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "uint8")
_MAX_ELEMENTS = 1 << 36
_DYNAMIC = re.compile(rf"({'|'.join(DYNAMIC_SIZES)})(/[1-9][0-9]{{0,3}})?")
# What a value must be besides its type: one of these names, or what the function says yes to. Whatever may become a
# part of a path, of a command or of a key is a known word, or a plain one.
_Hash = Annotated[str, re.compile("[0-9a-f]{64}").fullmatch]
_Word = Annotated[str, re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}").fullmatch]
_Capability = Annotated[str, re.compile(r"[0-9]{1,3}\.[0-9]{1,3}").fullmatch]
_InnerPath = Annotated[str, lambda path: check_inner_path(path) is None]
_Stage = Annotated[str, (*STAGES, *OPTIONAL_STAGES)]
_Precision = Annotated[str, PRECISIONS]
_Count = Annotated[int, lambda value: value >= 1]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a stage."""

    name: str
    dtype: Annotated[str, DTYPES]
    shape: tuple[int | str, ...]
    """Sizes; a name stands for a dynamic one (``rows``, ``latent_height``, ...)."""


@dataclass(frozen=True)
class CalibrationSpec:
    """What a graph's 8-bit activations were calibrated on."""

    name: str
    """Of the listing, or "demo"."""
    sha256: _Hash
    """Of its files and captions."""
    samples: int
    steps: int
    """Denoising steps of each sample."""


@dataclass(frozen=True)
class StageSpec:
    """One ONNX graph."""

    file: _InnerPath
    precision: _Precision
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

    stage: _Stage
    file: _InnerPath
    target: _Word
    """As it was asked for: rtx4060, sm89, rtx, ..."""
    backend: _Word
    """tensorrt-rtx or tensorrt."""
    version: _Word
    """Of the library that built it; no other can load it."""
    precision: _Precision
    compute_capabilities: tuple[Annotated[str, re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\+?").fullmatch], ...]
    """GPUs it runs on: "8.9"; "8.0+" stands for that one and every later one."""
    onnx_sha256: _Hash
    """Of the ONNX graph and its weights; see :func:`graph_sha256`."""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    """As the engine was built, dynamic sizes by name; a profile says what they may be."""
    profiles: tuple[ProfileSpec, ...] = ()
    metadata: str = ""
    """File with what was known at build time: layers, attentions, seconds, memory."""
    stripped: bool = False
    """Without weights: they are taken from the ONNX when it is loaded."""
    platform: Annotated[str, ("", "linux", "windows")] = ""
    """Operating system it runs on: linux or windows; empty: any (TensorRT for RTX)."""
    accumulate: Annotated[str, ACCUMULATORS] = "auto"
    """What its products were asked to accumulate in; the metadata says what the plan has."""
    form: int = 0
    """Version of what the builder makes of the graph; an engine of another version still runs, and is built again."""


@dataclass(frozen=True)
class KernelSpec:
    """Our own CUDA kernels of one source file, compiled for one compute capability."""

    name: _Word
    file: _InnerPath
    compute_capability: _Capability
    source_sha256: _Hash
    entry_points: tuple[str, ...]


@dataclass(frozen=True)
class ModelSpec:
    """What the model takes and makes."""

    frames: _Count
    """Frames of one clip, the first frame included."""
    height: _Count
    width: _Count
    """Pixels. With `dynamic_size_multiple`, the defaults."""
    latent_channels: _Count
    vae_scale_factor: _Count
    """Pixels per latent position."""
    vae_scaling_factor: Annotated[float, lambda value: 1e-6 <= value <= 1e6]
    """Latents are VAE latents times this (0.18215 in Stable Diffusion); beyond the limits they overflow or vanish."""
    rows: _Count | None
    """Batch of the exported U-Net; None where it is dynamic."""
    guidance: Annotated[str, tuple(BRANCHES)]
    """Guidance a fixed batch was chosen for: text (2 rows), both (3) or none (1); text where it is dynamic."""
    dynamic_size_multiple: _Count | None
    """Height and width may be any multiple of this many pixels; None: fixed."""
    uses_frame_stride: bool
    trained: bool
    """False for random weights: such a bundle shows that everything runs, and noise."""
    unet_config: dict[str, Any]
    cache_branch: int | None = None
    """The skip at which feature caching cuts; then there is a stage ``unet_shallow``. None: no caching."""
    text_attention: Annotated[str, TEXT_ATTENTIONS] = "full"
    """full as published, or mean: simplified, with a loss."""
    sizes: tuple[tuple[int, ...], ...] = ()
    """Height and width in pixels of each size that ``fit="auto"`` chooses from and that engines are built for, the
    default first; empty: the default alone.
    """


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer's file, and the numbers that the text encoder expects."""

    file: _InnerPath
    max_length: _Count
    pad_token_id: int
    pad_token: str


@dataclass(frozen=True)
class FrameInitDefaults:
    """FrameInit settings the model is published with (ConsistI2V, arXiv:2402.04324)."""

    noise_level: int = 850
    filter: Annotated[str, FILTER_KINDS] = "gaussian"
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
    """Where the weights came from, their licence, and the tools that made the bundle."""

    source: str
    revision: str
    licence: str
    tools: dict[str, str]
    """Versions of the packages that made the bundle."""


@dataclass(frozen=True)
class FileRecord:
    """What a file of the bundle must be."""

    sha256: _Hash
    bytes: int


@dataclass(frozen=True)
class LoraFileSpec:
    """A LoRA that was merged into a bundle."""

    name: str
    """Of its file."""
    sha256: _Hash
    scale: float


@dataclass(frozen=True)
class LoraSpec:
    """What ``consisti2v lora`` merged, and into what."""

    base: str
    """Name of the bundle without them."""
    base_sha256: _Hash
    """Of that bundle's graphs; see :func:`graphs_sha256`."""
    files: tuple[LoraFileSpec, ...]


@dataclass(frozen=True)
class Manifest:
    """The whole of ``bundle.json``."""

    name: str
    model: ModelSpec
    tokenizer: TokenizerSpec
    scheduler: dict[str, Any]
    frame_init: FrameInitDefaults
    stages: dict[_Stage, StageSpec]
    provenance: Provenance
    files: dict[_InnerPath, FileRecord]
    """Every other file of the bundle, by its path in it."""
    recommended: RecommendedSettings = RecommendedSettings()
    variants: dict[Annotated[str, PRECISIONS[1:]], dict[str, StageSpec]] = field(default_factory=dict)
    """The same stages in other precisions: precision -> stage -> graph. Their inputs and outputs keep the names."""
    engines: tuple[EngineSpec, ...] = ()
    kernels: tuple[KernelSpec, ...] = ()
    """Compiled kernels, one for each source file and compute capability; every target that has it shares them."""
    lora: LoraSpec | None = None
    """None: the weights are those of the export."""
    schema_version: int = field(default=SCHEMA_VERSION)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical form; see :mod:`.digest`."""
        return digest_of(self)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check. What ``inspect --json`` prints is read too: the digest in it must be the manifest's.

        Raises:
            UserError: not JSON, an unknown schema version, an entry missing, unknown or of the wrong kind, a path that
                leaves the bundle, a name that is none of the known ones, or a stage whose file is not recorded.
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
        said = data.pop("digest", None)
        engines = data.get("engines")
        for engine in engines if isinstance(engines, list) else ():
            for former, name in _FORMER_ENGINE_NAMES.items():
                if isinstance(engine, dict) and former in engine and name not in engine:
                    engine[name] = engine.pop(former)
        manifest: Manifest = parse_typed(cls, data, "")
        manifest._check()
        if said is not None and said != manifest.digest:
            message = f"says that its digest is {str(said)[:80]!r}, and it is {manifest.digest}"
            raise UserError(f"{MANIFEST_NAME} {message}: {NEVER}.")
        return manifest

    def _check(self) -> None:
        """What holds between entries."""
        needed = STAGES if self.model.cache_branch is None else (*STAGES, "unet_shallow")
        missing = [stage for stage in needed if stage not in self.stages]
        if missing:
            raise UserError(f"{MANIFEST_NAME} has no stage {', '.join(missing)}: export the bundle again.")
        for precision, graphs in self.variants.items():
            check_known(f"variants.{precision}", graphs, tuple(self.stages))
        for number, engine in enumerate(self.engines):
            check_known(f"engines[{number}].stage", (engine.stage,), tuple(self.stages))
            self._check_profiles(engine, f"engines[{number}]")
        self._check_files()
        self._check_tensors()

    def _graphs(self) -> dict[str, StageSpec]:
        """Every graph, by its entry."""
        graphs = {f"stages.{name}": stage for name, stage in self.stages.items()}
        for precision, stages in self.variants.items():
            graphs |= {f"variants.{precision}.{name}": stage for name, stage in stages.items()}
        return graphs

    def _check_files(self) -> None:
        """Every path is recorded, and is another one on every operating system; what was built lies where it is
        built.
        """
        built = [kernel.file for kernel in self.kernels]
        for engine in self.engines:
            built += [engine.file, *([engine.metadata] if engine.metadata else [])]
        for path in (self.tokenizer.file, *(stage.file for stage in self._graphs().values()), *built):
            if path not in self.files:
                raise UserError(f"{MANIFEST_NAME} names {path!r} without a hash: export the bundle again.")
        for path in built:
            if not path.startswith(DERIVED_FOLDERS):
                raise UserError(
                    f"{MANIFEST_NAME} names {path!r} as built, which is not below {', '.join(DERIVED_FOLDERS)}: "
                    f"{NEVER}."
                )
        seen: dict[str, str] = {}
        for path in (MANIFEST_NAME, *self.files):
            # To systems that ignore case, forms of one character, and dots and spaces at the end of a name.
            parts = unicodedata.normalize("NFC", path).casefold().split("/")
            other = seen.setdefault("/".join(part.rstrip(". ") for part in parts), path)
            if other != path:
                raise UserError(
                    f"{MANIFEST_NAME} records {path!r} and {other!r}, which are one file on some systems: "
                    "export the bundle again."
                )

    def _check_tensors(self) -> None:
        tensors = {
            f"{where}.{kind}: {spec.name[:80]}": spec
            for where, stage in self._graphs().items()
            for kind, specs in (("inputs", stage.inputs), ("outputs", stage.outputs))
            for spec in specs
        }
        for number, engine in enumerate(self.engines):
            tensors |= {f"engines[{number}]: {spec.name[:80]}": spec for spec in (*engine.inputs, *engine.outputs)}
        for where, spec in tensors.items():
            fault = ""
            fixed = [size for size in spec.shape if isinstance(size, int)]
            wrong = [size for size in spec.shape if isinstance(size, str) and not _DYNAMIC.fullmatch(size)]
            if wrong:
                fault = (
                    f"has the size {wrong[0][:40]!r}, which is neither a number nor of {', '.join(DYNAMIC_SIZES)} one"
                )
            elif len(spec.shape) > MAX_RANK:
                fault = f"has {len(spec.shape)} sizes, more than {MAX_RANK}"
            elif min(fixed, default=1) < 1:
                fault = f"has a size, which cannot be {min(fixed)}"
            elif math.prod(fixed) > _MAX_ELEMENTS:
                fault = f"has {list(spec.shape)} elements, more than {_MAX_ELEMENTS}"
            if fault:
                raise UserError(f"{MANIFEST_NAME}: tensor {where} {fault}: export the bundle again.")

    def _check_profiles(self, engine: EngineSpec, where: str) -> None:
        """An engine's inputs are its stage's, and every profile gives each open one a range of the same rank."""
        shapes = {spec.name: spec.shape for spec in engine.inputs}
        ranks = {spec.name: len(spec.shape) for spec in self.stages[engine.stage].inputs}
        fits = all(ranks.get(name) == len(shape) for name, shape in shapes.items())
        for profile in engine.profiles:
            fits = fits and profile.inputs.keys() <= shapes.keys()
            for name, sizes in profile.inputs.items():
                same = len(sizes.minimum) == len(sizes.optimum) == len(sizes.maximum) == ranks.get(name)
                ordered = zip(sizes.minimum, sizes.optimum, sizes.maximum, strict=False)
                fits = fits and same and all(0 < low <= best <= high for low, best, high in ordered)
        ranged = {name for profile in engine.profiles for name in profile.inputs}
        fits = fits and all(
            name in ranged or all(type(size) is int for size in shape) for name, shape in shapes.items()
        )
        if not fits:
            raise UserError(
                f"{MANIFEST_NAME}: the inputs or profiles of {where} are not those of stage {engine.stage}: "
                f"build it again with 'consisti2v build BUNDLE --target {engine.target}'."
            )


def graph_sha256(manifest: Manifest, stage: StageSpec, *, weights: bool = True) -> str:
    """Identity of an ONNX graph from the recorded hashes of its files, nothing is read.

    Args:
        weights: count the file of its weights too. An engine without weights fits a graph whose weights changed.
    """
    names = [stage.file, *([stage.file + ".data"] if weights else [])]
    hashes = [manifest.files[name].sha256 for name in names if name in manifest.files]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def graphs_sha256(manifest: Manifest) -> str:
    """Identity of all exported graphs with their weights, whatever was built from them."""
    hashes = [f"{name} {graph_sha256(manifest, manifest.stages[name])}" for name in sorted(manifest.stages)]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
