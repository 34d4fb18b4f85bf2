"""The nodes: load a bundle, choose a camera motion, animate photos."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, InputImpl, Types, io
from PIL import Image

from ..errors import CancelledError, UserError
from ..runtime.backends import DEVICES
from ..runtime.bundle.home import find_bundle, named_bundles
from ..runtime.request.option_table import CAMERA_MOTIONS
from ..runtime.request.settings import StepProgress
from .inputs import setting_inputs, settings_from
from .models import interruptible, loaded, preview

Model = io.Custom("CONSISTI2V_BUNDLE")
Motion = io.Custom("CONSISTI2V_CAMERA_MOTION")
_CATEGORY = "video/ConsistI2V"
_PREVIEW_SIDE = 512


class LoadBundle(io.ComfyNode):
    """A bundle by its name or folder, and what runs it."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ConsistI2VLoadBundle",
            display_name="ConsistI2V: load bundle",
            category=_CATEGORY,
            description="A model made by 'consisti2v export'. It is loaded at its first use and stays loaded.",
            inputs=[
                io.Combo.Input("bundle", options=list(named_bundles()), tooltip="From the bundle folder."),
                io.Combo.Input("device", options=list(DEVICES), default="auto", tooltip="What runs it."),
                io.String.Input("path", default="", tooltip="A bundle's folder, instead of a name."),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, bundle: str, device: str, path: str = "") -> Any:
        folder = str(find_bundle(path or bundle))
        loaded(folder, device)  # what is wrong with the bundle is said by this node
        return io.NodeOutput((folder, device))


class CameraMotion(io.ComfyNode):
    """How the camera moves."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ConsistI2VCameraMotion",
            display_name="ConsistI2V: camera motion",
            category=_CATEGORY,
            description="The video starts from a moving crop of the photo instead of a still.",
            inputs=[io.Combo.Input("motion", options=list(CAMERA_MOTIONS), tooltip="Where the camera goes.")],
            outputs=[Motion.Output(display_name="camera motion")],
        )

    @classmethod
    def execute(cls, motion: str) -> Any:
        return io.NodeOutput(motion)


class Animate(io.ComfyNode):
    """Photos and a prompt to frames and a video."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ConsistI2VAnimate",
            display_name="ConsistI2V: animate",
            category=_CATEGORY,
            description="Each photo becomes a video that begins with it.",
            inputs=[
                Model.Input("model"),
                io.Image.Input("image", tooltip="A photo, or several."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What happens."),
                io.String.Input("negative_prompt", multiline=True, default="", tooltip="What to lead away from."),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True),
                Motion.Input("camera_motion", optional=True, tooltip="From the node of this name."),
                *setting_inputs(),
            ],
            outputs=[io.Image.Output(display_name="frames"), io.Video.Output(display_name="video")],
        )

    @classmethod
    def execute(
        cls,
        model: tuple[str, str],
        image: torch.Tensor,
        prompt: str,
        negative_prompt: str,
        seed: int,
        camera_motion: str | None = None,
        **values: Any,
    ) -> Any:
        animate, pictures = loaded(*model), None
        pixels = (image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        photos = [Image.fromarray(photo) for photo in pixels]
        options = settings_from(values)
        request = animate.check(
            photos,
            [prompt] * len(photos),
            seed=seed,
            negative_prompt=negative_prompt,
            camera_motion=camera_motion,
            **options,
        )
        settings = request.settings
        bar = ProgressBar(settings.num_inference_steps * settings.autoregress_steps)
        done = 0

        def on_step(step: StepProgress) -> None:
            nonlocal done
            done += 1
            shown = None
            if pictures is not None and step.latents is not None:
                latents = step.latents[0]
                picture = Image.fromarray(pictures.picture(latents[:, latents.shape[1] // 2]))
                factor = max(1, _PREVIEW_SIDE // max(picture.size))
                resized = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
                shown = ("JPEG", resized, _PREVIEW_SIDE)
            bar.update_absolute(done, preview=shown)

        try:
            with interruptible() as token:
                pictures = preview(*model)
                videos = animate(
                    photos,
                    [prompt] * len(photos),
                    seed=seed,
                    negative_prompt=negative_prompt,
                    camera_motion=camera_motion,
                    callback=on_step,
                    cancel_token=token,
                    **options,
                )
        except CancelledError:
            model_management.throw_exception_if_processing_interrupted()
            raise UserError("the model was closed while it ran, because ComfyUI freed memory: run it again.") from None
        frames = torch.from_numpy(videos.frames).flatten(0, 1).float() / 255
        rate = Fraction(settings.fps).limit_denominator(1000)
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=rate))
        return io.NodeOutput(frames, video)


class Extension(ComfyExtension):
    """What ComfyUI asks for."""

    async def get_node_list(self) -> list[Any]:
        return [LoadBundle, Animate, CameraMotion]


async def comfy_entrypoint() -> Extension:
    """Called by ComfyUI when it loads custom nodes."""
    return Extension()
