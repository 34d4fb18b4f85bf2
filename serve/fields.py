"""The body of a request for a video: JSON or a form, with the names that servers of this API take.

``prompt, model, size, seconds, fps, num_frames, seed ...`` and every field of ``GenerationSettings``, beside each other
or in ``extra_body``. What is not known is refused with a sentence.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError, shown
from ..runtime.files.guarded_read import parse_json
from ..runtime.request.option_table import ALIASES, OPTIONS, similar_names
from ..runtime.request.presets import PRESETS
from ..runtime.request.settings import GenerationSettings
from .job import Job, new_id
from .models import Model
from .options import ServerOptions

IMAGE_FIELDS = ("input_reference", "image_reference", "reference_url")
_OWN = ("prompt", "model", "size", "seconds", "extra_body")
_NOT_HERE = {
    "generator": "give seed",
    "num_videos_per_prompt": "a request makes one video; send one request per video",
    "videos_per_prompt": "a request makes one video; send one request per video",
    "num_images_per_prompt": "a request makes one video; send one request per video",
}
SETTINGS = tuple(name for name in OPTIONS if name not in _NOT_HERE)
_KNOWN = (*_OWN, *IMAGE_FIELDS, *SETTINGS, *(name for name in ALIASES if name not in _NOT_HERE))


@dataclass(frozen=True)
class ImageUrl:
    """An image that is fetched from elsewhere."""

    url: str


def read_fields(fields: Mapping[str, Any], *, is_form: bool) -> tuple[dict[str, Any], bytes | ImageUrl]:
    """The fields of a body under one roof, and the image.

    Args:
        fields: of the body; files of a form as bytes.
        is_form: numbers come as texts.

    Raises:
        UserError: a field that is unknown or given twice, or no image.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    extra = given.pop("extra_body", {})
    if isinstance(extra, str):
        extra = _parsed(extra, "extra_body")
    if not isinstance(extra, dict):
        raise UserError("extra_body is not possible: give a JSON object of settings.")
    if is_form:
        given = {name: _from_form(name, value) for name, value in given.items()}
    for name in extra:
        if name in given:
            raise UserError(f"{name} stands in extra_body and beside it: give it once.")
    given |= extra
    for name in given:
        _check_known(name)
    return given, _image({name: given.pop(name) for name in IMAGE_FIELDS if name in given})


def make_job(given: dict[str, Any], image: bytes, models: Mapping[str, Model], options: ServerOptions) -> Job:
    """A request as a job; fields as :func:`read_fields` gives them.

    Raises:
        UserError: a field that is not possible, or over a limit of this server.
    """
    model = find_model(given.pop("model", None), models)
    prompt = given.pop("prompt", "")
    for name, text in (("prompt", prompt), ("negative_prompt", given.get("negative_prompt", ""))):
        if not isinstance(text, str):
            raise UserError(f"{name} {shown(text)} is not possible: give a text.")
        if len(text) > options.max_prompt:
            raise UserError(f"{name} has {len(text)} characters: this server takes {options.max_prompt}; shorten it.")
    if isinstance(given.get("seed"), list):
        raise UserError(f"seed {shown(given['seed'])} is not possible: give one whole number, for one video.")
    _set_size(given)
    _set_length(given, model)
    settings, notices = model.resolve(prompt, GenerationSettings.from_options(given), image)
    _check_limits(settings, options)
    return Job(new_id(), model.name, prompt, asdict(settings), settings.total_frames, notices)


def decode_data_uri(text: str) -> bytes:
    """The bytes of ``data:image/png;base64,...``; :class:`UserError` where it is none."""
    head, comma, body = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UserError("the image's data URI is not possible: give data:image/jpeg;base64,... .")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the image's data URI is not base64: encode the file's bytes again.") from None


def _check_known(name: str) -> None:
    if name in _NOT_HERE:
        raise UserError(f"field {name} is not possible here: {_NOT_HERE[name]}.")
    if name not in _KNOWN:
        own = [one for one in (*_OWN, *IMAGE_FIELDS) if name in one or one in name]
        near = similar_names(name, SETTINGS) or own
        advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(dict.fromkeys(_KNOWN))}."
        raise UserError(f"field {shown(name)} is unknown: {advice}")


def _from_form(name: str, value: Any) -> Any:
    """A form's text as the kind of value that its field takes."""
    if not isinstance(value, str) or name in (*_OWN, *IMAGE_FIELDS, "negative_prompt"):
        return value
    option = OPTIONS.get(ALIASES.get(name, name))
    if option is None or option.kind is str or option.setting == "chain":
        return value
    return _parsed(value.lower() if option.kind is bool else value, name)


def _parsed(text: str, name: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        raise UserError(f"{name} {shown(text)} is not possible: give a number, true or false, or JSON.") from None


def _image(given: Mapping[str, Any]) -> bytes | ImageUrl:
    """The one image among the fields that may hold it."""
    if len(given) != 1:
        have = f"has {len(given)} images" if given else "has no image"
        raise UserError(f"the request {have}: give one, as the file input_reference of a form or as a data URI.")
    (name, value), *_ = given.items()
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _parsed(value, name)
    if isinstance(value, dict):
        if list(value) != ["image_url"]:
            raise UserError(f'{name} is not possible: give {{"image_url": "data:image/jpeg;base64,..."}}.')
        value = value["image_url"]
        if isinstance(value, dict) and list(value) == ["url"]:
            value = value["url"]
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.startswith("data:"):
        return decode_data_uri(value)
    if isinstance(value, str) and urlsplit(value).scheme in ("http", "https"):
        return ImageUrl(value)
    raise UserError(f"{name} {shown(value)} is no image: upload a file, or give a data URI.")


def find_model(name: Any, models: Mapping[str, Model]) -> Model:
    """The model of this name; None: the first one. :class:`UserError` where there is none."""
    if name is None:
        return next(iter(models.values()))
    if not isinstance(name, str) or name not in models:
        raise UserError(f"model {shown(name)} is not loaded: choose {', '.join(models)}, or leave it out.")
    return models[name]


def _set_size(given: dict[str, Any]) -> None:
    """``size`` as height and width."""
    if "size" not in given:
        return
    size = given.pop("size")
    width, x, height = size.partition("x") if isinstance(size, str) else ("", "", "")
    if not (x and width.isdecimal() and height.isdecimal() and len(size) < 20):
        raise UserError(f"size {shown(size)} is not possible: give WIDTHxHEIGHT in pixels, as 256x256.")
    for name, value in (("width", int(width)), ("height", int(height))):
        if given.setdefault(name, value) != value:
            raise UserError(f"size {size} and {name} {shown(given[name])} contradict each other: give one of them.")


def _set_length(given: dict[str, Any], model: Model) -> None:
    """``seconds`` or a number of frames as a number of clips, which all have the model's own length.

    Seconds give the nearest number of clips; the answer tells the true length.
    """
    clip = model.manifest.model.frames
    chain = given.get("chain")
    overlap = chain.partition(":")[2] if isinstance(chain, str) else ""
    # A chain that is not possible is refused with the other settings.
    added = max(clip - (int(overlap) if overlap.isdecimal() and len(overlap) < 6 else 1), 1)
    names = [name for name in given if ALIASES.get(name, name) == "video_length"]
    clips = [name for name in given if ALIASES.get(name, name) == "autoregress_steps"]
    if "seconds" in given:
        if names or clips:
            raise UserError(f"seconds and {(names + clips)[0]} both say how long the video is: give one of them.")
        seconds = _number(given.pop("seconds"), "seconds")
        rate = next((given[name] for name in given if ALIASES.get(name, name) == "fps"), GenerationSettings.fps)
        frames = seconds * _number(rate, "fps")
        given["autoregress_steps"] = max(1, 1 + round((frames - clip) / added))
        return
    if len(names) == 1 and not clips:
        wanted = given[names[0]]
        if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > clip:
            count, rest = divmod(wanted - clip, added)
            if rest:
                fits = [clip + k * added for k in (count, count + 1)]
                raise UserError(
                    f"{names[0]} {wanted} does not fit: this model makes clips of {clip} frames, each after the first "
                    f"adding {added}; give {fits[0]} or {fits[1]}."
                )
            del given[names[0]]
            given["autoregress_steps"] = count + 1


def _number(value: Any, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= 3600:
        raise UserError(f"{name} {shown(value)} is not possible: give a number above 0, at most 3600.")
    return number


def _check_limits(settings: Any, options: ServerOptions) -> None:
    """Refuse more work than this server takes for one video."""
    pixels = settings.height * settings.width
    for what, count, most in (
        ("num_inference_steps", settings.num_inference_steps, options.max_steps),
        ("autoregress_steps (clips)", settings.autoregress_steps, options.max_clips),
        ("width times height", pixels, options.max_frame_pixels),
    ):
        if count > most:
            raise UserError(f"{what} {count} is more than this server takes: give at most {most}.")


def shown_options() -> list[dict[str, Any]]:
    """Every setting with its kind and limits, for ``/v1/capabilities``."""
    kinds = {int: "integer", float: "number", bool: "boolean", str: "choice", None: "interval"}
    entries = []
    for name in SETTINGS:
        option = OPTIONS[name]
        kind = {"negative_prompt": "text", "chain": "text", "seed": "integer", "timesteps": "list"}.get(name) or kinds[
            option.kind
        ]
        entries.append(
            {
                "name": name,
                "kind": kind,
                "minimum": option.low if math.isfinite(option.low) else None,
                "maximum": option.high if math.isfinite(option.high) else None,
                "choices": list(option.choices) or None,
                "other_names": [other for other in option.names if other != name],
                "group": option.panel,
                "help": option.help,
            }
        )
    return entries


def shown_presets() -> dict[str, Any]:
    """The presets, with what each stands for."""
    presets: dict[str, Any] = json.loads(json.dumps(PRESETS))
    return presets
