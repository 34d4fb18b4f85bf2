"""The routes of ``/v1/videos`` and those beside them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import UserError
from . import schema
from .content import FORMATS, THUMBNAIL, file_of
from .dispatcher import Dispatcher
from .fetch import fetch_image
from .fields import ImageUrl, find_model, make_job, read_fields, shown_options, shown_presets
from .gate import refusal
from .job import Job
from .loras import check_fields
from .models import LoraUse
from .options import MIB
from .refusals import QueueFullError, StoppingError
from .store import IMAGE

_LONGEST_TEXT = 1 * MIB
_MAX_FIELDS = 100
_POLL_SECONDS = 0.5


def make_router(dispatcher: Dispatcher) -> APIRouter:
    """Every route, on a dispatcher."""
    router = APIRouter()
    options, store = dispatcher.options, dispatcher.store

    @router.post("/v1/videos", tags=["videos"], summary="Ask for a video", **schema.CREATE)
    async def create(request: Request) -> Response:
        job = await _submit(dispatcher, request)
        return JSONResponse(dispatcher.shown(job))

    @router.post("/v1/videos/sync", tags=["videos"], summary="Ask for a video and wait for it", **schema.SYNC)
    async def sync(request: Request) -> Response:
        job = await _submit(dispatcher, request)
        while (now := dispatcher.find(job.id)) is not None and not now.is_finished:
            if await request.is_disconnected():
                dispatcher.cancel(now)
                return Response(status_code=499)
            await dispatcher.events.wait(job.id, _POLL_SECONDS)
        if now is None or now.status == "cancelled":
            return refusal(409, "cancelled", "the video was cancelled while this request waited for it.")
        if now.status == "failed":
            error = now.error or {"code": "failed", "message": "the video could not be made."}
            return refusal(400 if error["code"] == "invalid_image" else 500, error["code"], error["message"])
        timings = now.timings or {}
        headers = {
            "x-video-id": now.id,
            "x-inference-time-s": f"{sum(timings.values()):.3f}",
            "x-stage-durations": json.dumps(timings),
        }
        return FileResponse(store.folder(now.id) / FORMATS["mp4"].file, media_type="video/mp4", headers=headers)

    @router.get("/v1/videos", tags=["videos"], summary="List videos", responses=schema.LIST)
    async def videos(after: str | None = None, limit: int = 20, order: str = "desc") -> Response:
        if not 1 <= limit <= 100:
            raise UserError(f"limit {limit} is not possible: give a whole number from 1 to 100.")
        if order not in ("asc", "desc"):
            raise UserError("order is not possible: choose asc or desc.")
        start = None if after is None else _find(dispatcher, after)
        jobs = dispatcher.page(start, limit + 1, newest_first=order == "desc")
        data = [dispatcher.shown(job) for job in jobs[:limit]]
        return JSONResponse(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": len(jobs) > limit,
            }
        )

    @router.get("/v1/videos/{video_id}", tags=["videos"], summary="Look at a video", responses=schema.VIDEO)
    async def video(video_id: str) -> Response:
        return JSONResponse(dispatcher.shown(_find(dispatcher, video_id)))

    @router.delete("/v1/videos/{video_id}", tags=["videos"], summary="Delete a video; cancels it where it runs")
    async def delete(video_id: str) -> Response:
        dispatcher.delete(_find(dispatcher, video_id))
        return JSONResponse({"id": video_id, "object": "video.deleted", "deleted": True})

    @router.post("/v1/videos/{video_id}/cancel", tags=["videos"], summary="Cancel a video", responses=schema.VIDEO)
    async def cancel(video_id: str) -> Response:
        job = _find(dispatcher, video_id)
        if job.is_finished and job.status != "cancelled":
            return refusal(409, "finished", f"the video has ended already: it is {job.status}.")
        dispatcher.cancel(job)
        return JSONResponse(dispatcher.shown(job))

    @router.get("/v1/videos/{video_id}/content", tags=["videos"], summary="Download a video", responses=schema.CONTENT)
    async def content(video_id: str, format: str = "mp4", variant: str = "video") -> Response:
        job = _find(dispatcher, video_id)
        if format not in FORMATS:
            raise UserError(f"format is unknown: choose {', '.join(FORMATS)}.")
        if variant not in ("video", "thumbnail", "photo"):
            raise UserError("variant is unknown: choose video, thumbnail or photo.")
        if variant == "photo":
            # The upload as it came: of whatever kind, so never shown as a page.
            return FileResponse(store.folder(job.id) / IMAGE, media_type="application/octet-stream", filename="photo")
        if job.status != "completed":
            return refusal(404, "not_ready", f"the video is {job.status}: its content is there once it is completed.")
        form = FORMATS[format] if variant == "video" else THUMBNAIL
        path = await file_of(store.folder(job.id), form, float(job.settings["fps"]))
        name = f"{job.id}{path.suffix}"
        headers = {"cache-control": "private, max-age=3600"}
        return FileResponse(
            path, media_type=form.media_type, filename=name, content_disposition_type="inline", headers=headers
        )

    @router.get("/v1/videos/{video_id}/events", tags=["videos"], summary="Follow a video", responses=schema.EVENTS)
    async def events(video_id: str, request: Request, last_event_id: int = 0) -> Response:
        _find(dispatcher, video_id)
        given = request.headers.get("last-event-id", "")
        last = int(given) if given.isdecimal() and len(given) < 16 else last_event_id
        stream = dispatcher.events.follow(video_id, dispatcher.find, dispatcher.shown, last)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @router.post("/v1/set_lora", tags=["weights"], summary="Have a model run with LoRAs", **schema.SET_LORA)
    async def set_lora(request: Request) -> Response:
        given, _ = await _fields(request)
        uses = dispatcher.loras.read_uses(given)
        return await _with_loras(_model(given), uses)

    @router.post("/v1/unmerge_lora_weights", tags=["weights"], summary="Run without LoRAs", **schema.UNMERGE)
    async def unmerge(request: Request) -> Response:
        given = await _optional_fields(request, ("model", "target"))
        return await _with_loras(_model(given), [])

    @router.get("/v1/list_loras", tags=["weights"], summary="Known and active LoRAs", responses=schema.LORAS)
    async def list_loras(model: str | None = None) -> Response:
        return JSONResponse(dispatcher.loras.shown(_model({"model": model})))

    @router.post("/v1/models/{name}/reload", tags=["weights"], summary="Read a replaced bundle", responses=schema.LORAS)
    async def reload(name: str) -> Response:
        return await _with_loras(_model({"model": name}), None)

    async def _with_loras(name: str, uses: list[LoraUse] | None) -> Response:
        await dispatcher.loras.set(name, uses)
        return JSONResponse({"status": "ok"} | dispatcher.loras.shown(name))

    def _model(given: Mapping[str, Any]) -> str:
        return find_model(given.get("model"), dispatcher.models).name

    @router.get("/v1/models", tags=["server"], summary="Models that are loaded")
    async def models() -> Response:
        entries = [
            {"id": model.name, "object": "model", "created": model.created, "owned_by": "consisti2v-rt"}
            for model in dispatcher.models.values()
        ]
        return JSONResponse({"object": "list", "data": entries})

    @router.get("/v1/capabilities", tags=["server"], summary="Sizes, limits, settings, queue and devices")
    async def capabilities() -> Response:
        return JSONResponse(
            {
                "version": __version__,
                "ready": dispatcher.is_ready,
                "models": [model.shown() for model in dispatcher.models.values()],
                "options": shown_options(),
                "presets": shown_presets(),
                "formats": list(FORMATS),
                "loras": [name for name, _ in options.loras],
                "previews": options.previews,
                "limits": {
                    "upload_bytes": options.max_upload,
                    "photo_pixels": options.max_image_pixels,
                    "frame_pixels": options.max_frame_pixels,
                    "steps": options.max_steps,
                    "clips": options.max_clips,
                    "prompt_characters": options.max_prompt,
                    "seconds": options.time_limit or None,
                    "kept_seconds": options.keep_seconds,
                },
                **dispatcher.state(),
            }
        )

    @router.get("/health", tags=["server"], summary="The server is alive")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get("/ready", tags=["server"], summary="A worker is loaded and warm; 503 until then")
    async def ready() -> Response:
        state = "ready" if dispatcher.is_ready else "loading"
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @router.get("/metrics", tags=["server"], summary="Figures in Prometheus' form")
    async def metrics() -> Response:
        return Response(dispatcher.read_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def answer_error(request: Request, error: Exception) -> Response:
    """Errors of any route as the API's own."""
    if isinstance(error, UserError):
        return refusal(400, "invalid_request", str(error))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return refusal(400, "invalid_request", f"{first['loc'][-1]} is not possible: {first['msg']}.")
    if isinstance(error, QueueFullError):
        message = f"the queue is full: try again in {error.retry_after} s."
        return refusal(429, "queue_full", message, {"retry-after": str(error.retry_after)})
    if isinstance(error, StoppingError):
        return refusal(503, "stopping", "the server is being stopped: try again later.", {"retry-after": "10"})
    if isinstance(error, OSError | sqlite3.Error):
        message = "the server cannot write to its disk, which may be full: try again later."
        return refusal(507, "storage", message, {"retry-after": "10"})
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "invalid_request")
        return refusal(error.status_code, code, str(error.detail), error.headers)
    return refusal(500, "internal_error", "the server failed at this request: its log says why.")


def _find(dispatcher: Dispatcher, video_id: str) -> Job:
    job = dispatcher.find(video_id)
    if job is None:
        raise HTTPException(404, "there is no video of this id: it may have expired, or been deleted.")
    return job


async def _submit(dispatcher: Dispatcher, request: Request) -> Job:
    """Read a request's body, fetch its image, and queue it."""
    fields, is_form = await _fields(request)
    options = dispatcher.options
    given, image = read_fields(fields, is_form=is_form)
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > 200:
        raise UserError("the header Idempotency-Key is too long: give at most 200 characters.")
    if isinstance(image, ImageUrl):
        image = await asyncio.to_thread(fetch_image, image.url, options.allow_urls, options.max_upload)
    if len(image) > options.max_upload:
        raise HTTPException(413, f"the image is larger than {options.max_upload / MIB:g} MiB: scale it down.")
    if not image:
        raise UserError("the image is empty: upload a photo.")
    job = make_job(given, image, dispatcher.models, options)
    job.request_key = key
    return dispatcher.submit(job, image)


async def _fields(request: Request) -> tuple[Mapping[str, Any], bool]:
    """The body's fields, and whether it was a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            fields = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise UserError("the body is no JSON: send an object, or a form with the file input_reference.") from None
        if not isinstance(fields, dict):
            raise UserError("the body is no JSON object: send one, or a form with the file input_reference.")
        return fields, False
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise HTTPException(415, "the body is neither JSON nor a form: send one of them, with its Content-Type.")
    form = await request.form(max_files=4, max_fields=_MAX_FIELDS, max_part_size=_most_text(request))
    fields = {}
    for name, value in form.multi_items():
        if name in fields:
            raise UserError(f"the form has {name} twice: give it once.")
        if isinstance(value, UploadFile):
            fields[name] = await value.read()
            await value.close()
        else:
            fields[name] = value
    return fields, True


async def _optional_fields(request: Request, known: Sequence[str]) -> Mapping[str, Any]:
    """The fields of a body that may be left out."""
    given = (await _fields(request))[0] if await request.body() else {}
    check_fields(given, known)
    return given


def _most_text(request: Request) -> int:
    """Bytes of a text in a form; an image may come as one, as a data URI, and the gate counts the whole."""
    length = request.headers.get("content-length", "")
    return max(_LONGEST_TEXT, int(length)) if length.isdecimal() else _LONGEST_TEXT
