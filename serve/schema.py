"""What OpenAPI says of requests and answers, with examples; the checks themselves are the library's."""

from __future__ import annotations

from typing import Any

from .fields import IMAGE_FIELDS, SETTINGS, shown_options
from .job import STATUSES

_VIDEO_EXAMPLE: dict[str, Any] = {
    "id": "video_0123456789abcdef01234567",
    "object": "video",
    "model": "demo",
    "status": "in_progress",
    "progress": 42,
    "created_at": 1790000000,
    "started_at": 1790000001,
    "completed_at": None,
    "expires_at": None,
    "prompt": "zoom in",
    "size": "64x64",
    "seconds": "2",
    "fps": 8.0,
    "num_frames": 16,
    "seed": 7,
    "step": 21,
    "steps": 50,
    "queue_position": None,
    "eta_seconds": 4.2,
    "error": None,
    "timings": None,
    "notices": [],
    "loras": [{"name": "style", "strength": 0.8}],
    "weights": "0" * 64,
    "settings": {"num_inference_steps": 50, "seed": 7},
}
_KINDS = {"integer": "integer", "number": "number", "boolean": "boolean", "choice": "string", "text": "string"}


def _type_of(value: Any) -> dict[str, Any]:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return {"type": kinds[type(value)]} if value is not None else {}


VIDEO_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: _type_of(value) for name, value in _VIDEO_EXAMPLE.items()}
    | {
        "status": {"type": "string", "enum": list(STATUSES)},
        "progress": {"type": "integer", "minimum": 0, "maximum": 100},
        "error": {
            "type": ["object", "null"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def _properties() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "prompt": {"type": "string"},
        "model": {"type": "string", "description": "A name of /v1/models; the first one where it is absent."},
        "size": {"type": "string", "pattern": r"^\d+x\d+$", "example": "256x256"},
        "seconds": {"type": "string", "description": "The nearest whole number of clips; the answer tells the length."},
        "extra_body": {"type": "object", "description": "Any of these fields."},
    }
    for option in shown_options():
        entry: dict[str, Any] = {"description": option["help"]}
        if option["kind"] in _KINDS:
            entry["type"] = _KINDS[option["kind"]]
        entry |= {key: option[key] for key in ("minimum", "maximum") if option[key] is not None}
        if option["choices"]:
            entry["enum"] = option["choices"]
        properties[option["name"]] = entry
    assert set(SETTINGS) <= set(properties)
    return properties


def _body() -> dict[str, Any]:
    file = {"input_reference": {"type": "string", "format": "binary", "description": "The photo."}}
    text = {
        IMAGE_FIELDS[1]: {
            "type": "object",
            "properties": {"image_url": {"type": "string", "description": "data:image/jpeg;base64,..."}},
        },
        "input_reference": {"type": "string", "description": "A data URI."},
    }
    form_example = {"prompt": "zoom in", "seed": 7}
    json_example = {"prompt": "zoom in", "image_reference": {"image_url": "data:image/jpeg;base64,/9j/4AAQ"}, "seed": 7}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": file | _properties(), "required": ["input_reference"]},
                    "example": form_example,
                },
                "application/json": {
                    "schema": {"type": "object", "properties": text | _properties()},
                    "example": json_example,
                },
            },
        }
    }


def _answer(description: str, kind: str, schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {kind: content}}


def _error(description: str, code: str, message: str) -> dict[str, Any]:
    example = {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}}
    return _answer(description, "application/json", {"type": "object"}, example)


def _lora_body(example: dict[str, Any], properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    own: dict[str, Any] = {
        "target": {"type": "string", "enum": ["all"]},
        "model": {"type": "string", "description": "A name of /v1/models; the first one where it is absent."},
    }
    schema = {"type": "object", "properties": properties | own, "required": required}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": bool(required), "content": content}}


def _one_or_several(kind: str, description: str) -> dict[str, Any]:
    return {"oneOf": [{"type": kind}, {"type": "array", "items": {"type": kind}}], "description": description}


_LORAS = {
    "model": "consisti2v-256",
    "loaded_adapters": [{"nickname": "style", "path": "style"}, {"nickname": "motion", "path": "motion"}],
    "active": {"transformer": [{"nickname": "style", "path": "style", "merged": True, "strength": 0.8}]},
    "weights": "0" * 64,
}
LORAS: dict[int | str, Any] = {
    200: _answer("Names that the operator gave, and what is merged", "application/json", {"type": "object"}, _LORAS),
    400: _error(
        "Refused; the weights stay", "invalid_request", "LoRA 'styl' is unknown: the operator names the files."
    ),
}
SET_LORA: dict[str, Any] = {
    "responses": LORAS,
    "openapi_extra": _lora_body(
        {"lora_nickname": ["style", "motion"], "strength": [0.8, 1.0]},
        {
            "lora_nickname": _one_or_several("string", "Names of list_loras; merged in this order."),
            "strength": _one_or_several("number", "1 where it is absent; one for all, or one for each."),
        },
        ["lora_nickname"],
    ),
}
UNMERGE: dict[str, Any] = {"responses": LORAS, "openapi_extra": _lora_body({}, {}, [])}
_BINARY = {"type": "string", "format": "binary"}
_REFUSED: dict[int | str, Any] = {
    400: _error("Refused", "invalid_request", "fps 0 is not possible: give a number from 0.01 to 1000."),
    413: _error("Too large", "too_large", "the request is too large: an image may have 32 MiB."),
    429: _error("Full; Retry-After says when to come again", "queue_full", "the queue is full: try again in 12 s."),
}
_ABSENT: dict[int | str, Any] = {404: _error("Not there", "not_found", "there is no video of this id.")}
VIDEO: dict[int | str, Any] = _ABSENT | {
    200: _answer("The video object", "application/json", VIDEO_SCHEMA, _VIDEO_EXAMPLE)
}
LIST: dict[int | str, Any] = {
    200: _answer(
        "Video objects",
        "application/json",
        {"type": "object"},
        {
            "object": "list",
            "data": [_VIDEO_EXAMPLE],
            "first_id": _VIDEO_EXAMPLE["id"],
            "last_id": _VIDEO_EXAMPLE["id"],
            "has_more": False,
        },
    )
}
CREATE: dict[str, Any] = {
    "openapi_extra": _body(),
    "responses": {200: VIDEO[200]} | _REFUSED,
}
SYNC: dict[str, Any] = {
    "openapi_extra": _body(),
    "responses": {200: _answer("The video", "video/mp4", _BINARY)} | _REFUSED,
}
CONTENT: dict[int | str, Any] = _ABSENT | {200: _answer("The file; ranges are answered", "video/mp4", _BINARY)}
EVENTS: dict[int | str, Any] = _ABSENT | {
    200: _answer(
        "Server-sent events",
        "text/event-stream",
        {"type": "string"},
        'id: 1000002\nevent: step\ndata: {"step":1,"steps":50,"progress":2,"eta_seconds":9.8}\n\n',
    )
}
