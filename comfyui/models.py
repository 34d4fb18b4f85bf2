"""Bundles that stay loaded between runs of a workflow, and are let go when ComfyUI asks for memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from comfy import model_management

from ..errors import UserError
from ..runtime.call_queue import CancelToken
from ..runtime.pipeline import ImageToVideo
from ..serve.preview import Preview

_POLL_SECONDS = 0.1
_lock = threading.Lock()
_loaded: dict[tuple[str, str], ImageToVideo] = {}
_previews: dict[tuple[str, str], Preview] = {}


def loaded(bundle: str, device: str) -> ImageToVideo:
    """The model of a bundle, opened at its first use."""
    _follow_memory_requests()
    with _lock:
        if (bundle, device) not in _loaded:
            _loaded[bundle, device] = ImageToVideo.from_bundle(bundle, device=device)
        return _loaded[bundle, device]


def preview(bundle: str, device: str) -> Preview | None:
    """Latents as pictures, fitted to the bundle's VAE with one step of a random photo; None where that fails."""
    key = bundle, device
    if key not in _previews:
        animate = loaded(bundle, device)
        noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        with suppress(UserError):
            made = animate(noise.repeat(32, 0).repeat(32, 1), num_inference_steps=1, guidance_scale_txt=1.0, seed=0)
            _previews[key] = Preview(made.latents, made.frames)
    return _previews.get(key)


def release() -> None:
    """Close every model; the next run opens what it needs again."""
    with _lock:
        models = list(_loaded.values())
        _loaded.clear()
    for model in models:
        model.close()


@contextmanager
def interruptible() -> Iterator[CancelToken]:
    """A token that ComfyUI's interrupt cancels, within one operation of a graph."""
    token, ended = CancelToken(), threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            if model_management.processing_interrupted():
                token.cancel()
                return

    watcher = threading.Thread(target=watch, name="consisti2v-interrupt", daemon=True)
    watcher.start()
    try:
        yield token
    finally:
        ended.set()
        watcher.join()


def _follow_memory_requests() -> None:
    """ComfyUI frees models of its own kind alone: where that was not enough, ours go too."""
    free = model_management.free_memory
    if getattr(free, "releases_consisti2v", False):
        return

    def free_memory(memory_required: float, device: Any, *more: Any, **named: Any) -> Any:
        freed = free(memory_required, device, *more, **named)
        if _loaded and model_management.get_free_memory(device) < memory_required:
            release()
        return freed

    free_memory.releases_consisti2v = True  # type: ignore[attr-defined]
    model_management.free_memory = free_memory
