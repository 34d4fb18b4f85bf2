"""Types of the library's arguments, checked with a sentence that says what to pass instead."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UserError, shown
from ..bundle.bundle import Bundle
from ..call_queue import CancelToken
from ..gpu.options import GpuOptions
from .option_table import check_flag, check_threads
from .settings import GenerationSettings

_IMAGE_TYPES = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)


def check_bundle(bundle: object) -> None:
    """Refuse, for the constructor, what is no open bundle, for example a path."""
    found, path = _kind(bundle), "path of its folder"
    if isinstance(bundle, str | os.PathLike):
        found, path = "a path", repr(os.fspath(bundle))
    if not isinstance(bundle, Bundle):
        raise UserError(f"ImageToVideo takes an open Bundle, not {found}: use ImageToVideo.from_bundle({path}).")


def check_bundle_path(path: object) -> None:
    """Refuse, for ``from_bundle``, what is no path."""
    if isinstance(path, Bundle):
        raise UserError("from_bundle takes the path of a bundle's folder: pass an open Bundle to ImageToVideo(bundle).")
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"from_bundle takes the path of a bundle's folder, as a str or a Path, not {_kind(path)}.")


def check_engine(threads: object, gpu: object) -> None:
    """For the constructor; names of devices and precisions are checked where they are looked up."""
    check_threads(threads)
    _demand(gpu, GpuOptions, "gpu", "a GpuOptions, as GpuOptions(low_vram=True)")
    for option in fields(GpuOptions):
        value = getattr(gpu, option.name)
        if value is not option.default:
            check_flag(value, option.name)


def check_inputs(image: object, prompt: object, settings: object) -> None:
    """Types that a call and its check have in common; whether images and prompts fit each other is not looked at."""
    wanted = "a path, the bytes of an image file, a binary file, a Pillow image or a uint8 array, or a list of them"
    for one in image if isinstance(image, list | tuple) else [image]:
        tensor = " (pass image.numpy(), uint8 with the channels last)" if hasattr(one, "detach") else ""
        if not hasattr(one, "read"):
            _demand(one, _IMAGE_TYPES, "image", wanted, tensor)
    for text in prompt if isinstance(prompt, list | tuple) else [prompt]:
        _demand(text, str, "prompt", "a text, or a list of texts", ': pass "" for no prompt')
    if settings is not None:
        advice = ": pass its items as options of the call, or GenerationSettings.from_options(settings)"
        advice = advice if isinstance(settings, dict) else ""
        _demand(settings, GenerationSettings, "settings", "a GenerationSettings", advice)


def check_call(latents: object, callback: object, on_frames: object, cancel_token: object) -> None:
    """Types of what only a call has."""
    if latents is not None and not (isinstance(latents, np.ndarray) and np.issubdtype(latents.dtype, np.floating)):
        kind = f"an array of {latents.dtype}" if isinstance(latents, np.ndarray) else _kind(latents)
        advice = "latents.cpu().numpy()" if hasattr(latents, "detach") else "np.asarray(latents, np.float32)"
        raise UserError(f"latents must be a NumPy array of floats, not {kind}: pass {advice}.")
    for name, function in (("callback", callback), ("on_frames", on_frames)):
        if function is not None:
            _demand(function, Callable, name, "a function")
        if inspect.iscoroutinefunction(function):
            raise UserError(
                f"{name} must be an ordinary function, for an async one would never run: hand its work to the event "
                "loop with asyncio.run_coroutine_threadsafe."
            )
    if cancel_token is not None:
        _demand(cancel_token, CancelToken, "cancel_token", "a CancelToken")


def _demand(value: object, types: Any, name: str, wanted: str, advice: str = "") -> None:
    if not isinstance(value, types):
        raise UserError(f"{name} must be {wanted}, not {_kind(value)}{advice}.")


def checked_latents(latents: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Initial noise as float32; :class:`UserError` for another shape, or values that are not finite in float32."""
    with np.errstate(over="ignore"):
        single = latents.astype(np.float32)
    if single.shape != shape or not np.isfinite(single).all():
        raise UserError(f"latents must be finite numbers of shape {list(shape)}, not {list(single.shape)}.")
    return single


def _kind(value: object) -> str:
    """What a wrong argument is, in a sentence: "None", "3", "a dict"."""
    if value is None or isinstance(value, bool | int | float):
        return shown(value)
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
