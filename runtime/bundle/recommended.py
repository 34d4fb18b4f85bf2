"""What a bundle recommends: read from options, checked like the settings of a call, and compared with what a call asks.

A model may know only some prompts, or follow none of the camera motions. A call may ask for others all the same; it
then gets a notice of what the model does know.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from itertools import accumulate
from typing import Any

from ...errors import UserError
from ...kernels.ddim import SchedulerConfig
from ...kernels.schedulers import step_table
from ..request.option_table import CAMERA_MOTIONS, one_of
from ..request.presets import PUBLISHED
from ..request.settings import check_sampling
from .manifest import RecommendedSettings

_MAX_PROMPTS = 1000
_MAX_LENGTH = 200
_SHOWN_LENGTH = 110
"""Characters of known prompts in a notice."""


def recommended_settings(
    options: Mapping[str, Any], scheduler: Mapping[str, Any], source: str, base: RecommendedSettings | None = None
) -> RecommendedSettings:
    """Recommended settings from names and values; lists become tuples.

    Args:
        options: fields of :class:`RecommendedSettings`.
        scheduler: the model's noise schedule, fields of :class:`SchedulerConfig`.
        source: where the options come from, for the message.
        base: what holds for fields that `options` does not name.

    Raises:
        UserError: an unknown name (the nearest known one is proposed), or a value that is not possible.
    """
    known = [f.name for f in fields(RecommendedSettings)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise UserError(f"{source}: setting {name!r} cannot be recommended: {advice}")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    recommended = replace(base or RecommendedSettings(), **values)
    check_recommended(recommended, scheduler, source)
    return recommended


def check_recommended(recommended: RecommendedSettings, scheduler: Mapping[str, Any], source: str) -> None:
    """Refuse, with a :class:`UserError`, recommended values that a call could not be given; arguments as for
    :func:`recommended_settings`.
    """
    given = {name: getattr(recommended, name) for name in PUBLISHED if getattr(recommended, name) is not None}
    chosen: Any = replace(recommended, **PUBLISHED | given)
    try:
        config = SchedulerConfig.from_dict(scheduler) if given else SchedulerConfig()
    except ValueError as error:
        raise UserError(f"the bundle's scheduler cannot be used: {error}") from None
    try:
        if given:
            check_sampling(chosen, config.num_train_timesteps)
            step_table(chosen.scheduler, config, chosen.num_inference_steps)
        _check_known(recommended)
    except (UserError, ValueError) as error:
        raise UserError(f"{source}: recommended {error}") from None


def notices(recommended: RecommendedSettings, prompts: Sequence[str], camera_motion: str | None) -> dict[str, str]:
    """One sentence for each subject ("prompt", "camera_motion") in which a call asks what the model does not know."""
    known, found = recommended.known_prompts, dict[str, str]()
    knows = "" if known is None else _shown(known)
    if known is not None:
        unknown = [prompt for prompt in dict.fromkeys(prompts) if not _is_known(prompt, known)]
        if unknown:
            example = repr(unknown[0] if len(unknown[0]) <= 60 else unknown[0][:57] + "...")
            subject = f"the prompt {example} is" if len(unknown) == 1 else f"{len(unknown)} prompts, as {example}, are"
            found["prompt"] = f"{subject} unknown to this model, which knows {knows}."
    motions = recommended.camera_motions
    if camera_motion is not None and motions is not None and camera_motion not in motions:
        follows = [f"follows {', '.join(motions)}"] if motions else []
        follows += [f"knows the prompts {knows}"] if knows else []
        rest = f"; it {' and '.join(follows)}" if follows else ""
        found["camera_motion"] = f"camera motion {camera_motion} moves nothing in this model{rest}."
    return found


def _check_known(recommended: RecommendedSettings) -> None:
    for name, most in (("known_prompts", _MAX_PROMPTS), ("camera_motions", len(CAMERA_MOTIONS))):
        entries = getattr(recommended, name)
        if entries is not None and not (isinstance(entries, tuple) and len(entries) <= most):
            raise UserError(f"{name} is not possible: give a list of at most {most} texts.")
    for motion in recommended.camera_motions or ():
        one_of(motion, "camera_motions", CAMERA_MOTIONS)
    for prompt in recommended.known_prompts or ():
        if not isinstance(prompt, str) or not (prompt.isprintable() and _words(prompt) and len(prompt) <= _MAX_LENGTH):
            raise UserError(
                f"known_prompts holds {str(prompt)[:60]!r}: give printable texts with a word, of at most {_MAX_LENGTH} "
                "characters."
            )


def _is_known(prompt: str, known: Iterable[str]) -> bool:
    """Whether the prompt holds a known phrase; case, spaces and punctuation have no say. No text is no request."""
    words = _words(prompt)
    return not words or any(f" {_words(phrase)} " in f" {words} " for phrase in known)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _shown(known: Sequence[str]) -> str:
    """The first ones, as many as fit into a line, and how many there are besides."""
    ends = accumulate(len(phrase) + 2 for phrase in known)
    count = max(1, sum(end <= _SHOWN_LENGTH + 2 for end in ends))
    rest = len(known) - count
    return (", ".join(known[:count]) or "none") + (f" and {rest} more ('consisti2v inspect' lists them)" * (rest > 0))
