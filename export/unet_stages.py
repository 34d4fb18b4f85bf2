"""The U-Net as stages: a full step, and the shallow step of feature caching (DeepCache, arXiv:2312.00858)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.session import dynamic_size
from .part_configs import TEXT_LENGTH
from .unet import VideoUNet


@dataclass
class StageExport:
    """One stage, ready to become one ONNX graph."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    """Random example inputs, by name, in the order of the graph's inputs."""
    outputs: list[str]
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    """Input or output -> axis -> name of its dynamic size; empty for a static export."""
    arrange: Callable[[list[Any]], tuple[Any, ...]] = tuple
    """Arranges one value per input as the arguments of the module."""

    def at_size(self, dims: Mapping[str, int], seed: int = 0) -> StageExport:
        """The stage with other random example inputs, of these pictures; other open sizes stay as they are.

        Args:
            dims: height, width, latent_height and latent_width.
        """
        generator, inputs = torch.Generator().manual_seed(seed), {}
        for name, tensor in self.inputs.items():
            shape = list(tensor.shape)
            for axis, size in self.axes.get(name, {}).items():
                shape[axis] = dynamic_size(size, dims) if size.partition("/")[0] in dims else shape[axis]
            changed = shape != list(tensor.shape)
            inputs[name] = torch.randn(shape, generator=generator) if changed else tensor
        return replace(self, inputs=inputs)


class UNetStage(nn.Module):
    """A full step."""

    def __init__(self, unet: VideoUNet, cache_branch: int | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.cache_branch = cache_branch
        self.parts = text_parts(unet)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        first_frame_latents: Tensor,
        text: list[Tensor],
        frame_stride: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """sample [rows, c, f-1, h, w], timestep and frame_stride int64 [1], first frame [rows, c, 1, h, w].

        With a cache branch also the deep features [rows, f, channels, h', w'].
        """
        by_path = group_text(text, self.parts)
        if self.cache_branch is None:
            return self.unet.denoise(sample, timestep, by_path, first_frame_latents, frame_stride)
        noise_pred, features = self.unet.denoise_and_keep(
            sample, timestep, by_path, first_frame_latents, frame_stride, self.cache_branch
        )
        return noise_pred, features.unflatten(0, (-1, self.unet.config.n_frames))


class ShallowUNetStage(nn.Module):
    """A shallow step of feature caching: the outer layers on the deep features of an earlier full step."""

    def __init__(self, unet: VideoUNet, cache_branch: int) -> None:
        super().__init__()
        self.unet = unet
        self.cache_branch = cache_branch
        self.parts = text_parts(unet, cache_branch)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        first_frame_latents: Tensor,
        text: list[Tensor],
        deep_features: Tensor,
        frame_stride: Tensor | None = None,
    ) -> Tensor:
        """As :class:`UNetStage`, with the text of the shallow layers and the deep features of an earlier full step."""
        by_path = group_text(text, self.parts)
        return self.unet.denoise_from_features(
            sample, timestep, by_path, first_frame_latents, frame_stride, self.cache_branch, deep_features.flatten(0, 1)
        )


def text_parts(unet: VideoUNet, cache_branch: int | None = None) -> dict[str, tuple[str, ...]]:
    """The parts of every text attention by the path of its transformer; with a branch, of a shallow step."""
    attentions = unet.text_attentions()
    paths = list(attentions) if cache_branch is None else unet.shallow_text_paths(cache_branch)
    return {path: attentions[path].parts for path in paths}


def text_tensor_names(unet: VideoUNet, cache_branch: int | None = None) -> list[str]:
    """Names shared by the conditioning's outputs and the U-Net's inputs: ``<transformer path>.key`` and ``.value``."""
    return [f"{path}.{part}" for path, parts in text_parts(unet, cache_branch).items() for part in parts]


def group_text(tensors: list[Tensor], parts: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[Tensor, ...]]:
    """One flat list, in the order of :func:`text_tensor_names`, by path."""
    rest = iter(tensors)
    return {path: tuple(next(rest) for _ in names) for path, names in parts.items()}


def unet_export(
    unet: VideoUNet,
    latent_size: tuple[int, int],
    rows: int,
    random: Callable[..., Tensor],
    axes: dict[str, dict[int, str]],
    cache_branch: int | None = None,
    *,
    shallow: bool = False,
) -> StageExport:
    """The U-Net stage; with a cache branch it also returns the deep features.

    Args:
        random: draws normal numbers of a shape.
        axes: names of dynamic sizes, by input or output.
        shallow: the step between two full ones, which takes the deep features instead.
    """
    config, names = unet.config, text_tensor_names(unet, cache_branch if shallow else None)
    with torch.no_grad():
        text = unet.text_key_values(random(rows, TEXT_LENGTH, config.cross_attention_dim))
    by_name = dict(zip(text_tensor_names(unet), [tensor for part in text.values() for tensor in part], strict=True))
    inputs = {
        "sample": random(rows, config.in_channels, config.n_frames - 1, *latent_size),
        "timestep": torch.tensor([501]),
        "first_frame_latents": random(rows, config.in_channels, 1, *latent_size),
        **{name: by_name[name] for name in names},
    }
    # The module takes the text tensors as one list, between the first frame and the rest.
    end = 3 + len(names)
    module: nn.Module = UNetStage(unet, cache_branch)
    outputs = ["noise_pred"]
    if shallow:
        assert cache_branch is not None
        module = ShallowUNetStage(unet, cache_branch)
        channels, *size = unet.deep_feature_shape(cache_branch, *latent_size)
        inputs["deep_features"] = random(rows, config.n_frames, channels, *size)
    elif cache_branch is not None:
        outputs.append("deep_features")
    if config.use_frame_stride_condition:
        inputs["frame_stride"] = torch.tensor([3])
    name = "unet_shallow" if shallow else "unet"
    return StageExport(name, module, inputs, outputs, axes, lambda flat: (*flat[:3], flat[3:end], *flat[end:]))


def unet_axes(unet: VideoUNet, dynamic: bool, cache_branch: int | None) -> dict[str, dict[int, str]]:
    """Names of the U-Net's dynamic sizes: the batch, and with `dynamic` height and width."""
    clip = {0: "rows", **({3: "latent_height", 4: "latent_width"} if dynamic else {})}
    axes = {"sample": clip, "first_frame_latents": clip, "noise_pred": clip}
    axes |= {name: {0: "rows"} for name in text_tensor_names(unet)}
    if cache_branch is not None:
        divisor = 2 ** unet.skip_level(cache_branch)
        names = (f"latent_{axis}" + (f"/{divisor}" if divisor > 1 else "") for axis in ("height", "width"))
        axes["deep_features"] = {0: "rows", **(dict(zip((3, 4), names, strict=True)) if dynamic else {})}
    return axes
