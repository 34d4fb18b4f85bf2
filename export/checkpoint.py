"""A checkpoint folder, found and checked from its configurations alone: no weights are read, torch is not needed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import UserError, first_line
from ..kernels.ddim import SchedulerConfig
from ..runtime.bundle.manifest import RecommendedSettings
from ..runtime.bundle.recommended import recommended_settings
from ..runtime.files.guarded_read import CONFIG, WEIGHT_INDEX, read_json_object
from .part_configs import TextEncoderConfig, VaeConfig, check_parts
from .unet.config import UNetConfig

PARTS = ("unet", "vae", "text_encoder", "tokenizer")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Half precision and training averages that diffusers keeps beside the weights proper.
_VARIANT = re.compile(r"\.(fp16|ema|non_ema)\.")
_CONFIG = CONFIG("check the model's folder, or download it again")
RECOMMENDED_FILE = "recommended.json"
_MAX_TOKENIZER_BYTES = 1 << 26
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in diffusers layout."""

    folder: Path
    name: str
    """Hub id, or the folder's name."""
    revision: str
    unet: UNetConfig
    vae: VaeConfig
    text_encoder: TextEncoderConfig
    recommended: RecommendedSettings


def open_checkpoint(
    model: str | os.PathLike[str],
    *,
    unet_checkpoint: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """Find a checkpoint and check what its configurations say.

    Args:
        model: a folder with ``unet/ vae/ text_encoder/ tokenizer/``, or a hub id such as ``TIGER-Lab/ConsistI2V``
            (downloaded once and cached, its configurations first; an interrupted download resumes). A file
            ``recommended.json`` in it holds fields of :class:`RecommendedSettings`.
        unet_checkpoint: a file whose U-Net weights replace the folder's.
        revision: hub revision.

    Raises:
        UserError: the model cannot be found, a part is missing, or a configuration cannot be of a real model.
    """
    if unet_checkpoint is not None:
        check_weight_file(Path(unet_checkpoint))
    folder = Path(model)
    if os.path.isdir(folder):  # noqa: PTH112  (a name too long for a path is no folder; Path.is_dir() raises)
        name, version = folder.resolve().name, "local folder"
    else:
        name = str(model)
        _read_configs(_download(name, revision, [f"{part}/config.json" for part in PARTS])[0])
        folder, version = _download(name, revision, [f"{part}/*" for part in PARTS] + ["README.md", RECOMMENDED_FILE])
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{model} lacks the folder {part}/: a checkpoint holds {', '.join(PARTS)}.")
        for file in (folder / part).iterdir():
            # The libraries that read the folder would wait for a FIFO and read a device without end.
            if not (file.is_file() or file.is_dir()):
                raise UserError(f"{file} is not a regular file: download the folder again.")
    _check_tokenizer(folder / "tokenizer")
    # The U-Net's weights are compared with its configuration one by one before it is built.
    sizes = {}
    for part in ("unet", "vae", "text_encoder"):
        files = [Path(unet_checkpoint)] if part == "unet" and unet_checkpoint else weight_files(folder / part)
        sizes[part] = sum(_check_weights(file) for file in files)
    unet, vae, text = _read_configs(folder)
    check_parts(vae, text, (unet.in_channels, unet.out_channels), unet.cross_attention_dim, sizes)
    return Checkpoint(folder, name, version, unet, vae, text, _read_recommended(folder / RECOMMENDED_FILE))


def check_weight_file(path: Path) -> None:
    """Refuse a name that no weights have, and a file that is not there.

    Raises:
        UserError: with the names there are.
    """
    if path.suffix not in WEIGHT_SUFFIXES:
        raise UserError(f"{path} is not a file of weights: give one that ends in {', '.join(WEIGHT_SUFFIXES)}.")
    if not os.path.isfile(path):  # noqa: PTH113  (a name too long is no file; Path.is_file() raises)
        raise UserError(f"{path} does not exist: give a safetensors file or a torch checkpoint.")


def weight_files(folder: Path) -> list[Path]:
    """The files of a part's weights; safetensors where they exist.

    Raises:
        UserError: there are none, or an index names files elsewhere.
    """
    for suffix in ("safetensors", "bin"):
        for index in sorted(folder.glob(f"*.{suffix}.index.json")):
            weight_map = read_json_object(index, WEIGHT_INDEX).get("weight_map")
            names = list(weight_map.values()) if isinstance(weight_map, dict) else []
            if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise UserError(f"{index} does not name the weight files beside it: download the folder again.")
            files = [folder / name for name in sorted(set(names))]
            for file in files:
                check_weight_file(file)
            return files
        whole = [file for file in sorted(folder.glob(f"*.{suffix}")) if not _VARIANT.search(file.name)]
        if whole:
            check_weight_file(whole[0])
            return whole[:1]
    raise UserError(f"{folder} holds no weights: a diffusion_pytorch_model.safetensors (or .bin) is expected there.")


def _read_configs(folder: Path) -> tuple[UNetConfig, VaeConfig, TextEncoderConfig]:
    return (
        UNetConfig.from_dict(read_json_object(folder / "unet" / "config.json", _CONFIG)),
        VaeConfig.from_dict(read_json_object(folder / "vae" / "config.json", _CONFIG)),
        TextEncoderConfig.from_dict(read_json_object(folder / "text_encoder" / "config.json", _CONFIG)),
    )


def _read_recommended(path: Path) -> RecommendedSettings:
    if not os.path.lexists(path):
        return RecommendedSettings()
    return recommended_settings(read_json_object(path, _CONFIG), asdict(SchedulerConfig()), str(path))


def _check_tokenizer(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    if config.is_file() and read_json_object(config, _CONFIG).get("auto_map") is not None:
        raise UserError(f"{config} names code of its own (auto_map), which is not run: give a CLIP tokenizer.")
    for file in folder.iterdir():
        if file.is_file() and file.stat().st_size > _MAX_TOKENIZER_BYTES:
            raise UserError(f"{file} is larger than a tokenizer can be ({_MAX_TOKENIZER_BYTES >> 20} MiB).")


def _check_weights(file: Path) -> int:
    """Size of a weight file; of a safetensors file also the header, which must not hold complex numbers: their
    imaginary part would be dropped silently.

    Raises:
        UserError: the header cannot be read, or names a complex dtype.
    """
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(f"{file} cannot be read as weights (its header is damaged): download it again.")
        try:
            header = json.loads(opened.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise UserError(f"{file} cannot be read as weights (its header is damaged): download it again.")
    for name, entry in header.items():
        kind = entry.get("dtype") if isinstance(entry, Mapping) else None
        if name != "__metadata__" and (not isinstance(kind, str) or kind.startswith("C")):
            raise UserError(f"{file}: tensor {name[:60]!r} has dtype {kind}; weights are real numbers.")
    return size


def _download(name: str, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"model {name} is neither a folder nor a hub id such as TIGER-Lab/ConsistI2V.")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"model {name} is no folder here and cannot be fetched from the hub ({first_line(error)}): check the "
            "name and the network, or give a folder."
        ) from None
    # The cache keeps each commit in a folder of its name.
    return folder, folder.name
