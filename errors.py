"""The one exception that means "the user can mend this"."""

from __future__ import annotations


def first_line(error: BaseException | str, longest: int = 300) -> str:
    """The first line of a library's message, without the full stop; the kind of an error that has no message."""
    lines = str(error).strip().splitlines() or [type(error).__name__ if isinstance(error, BaseException) else ""]
    return lines[0][:longest].rstrip(". ") or "no reason given"


MAX_SENTENCE = 2000
"""Characters of a sentence; a manifest can hold a name of millions."""


def shown(value: object, longest: int = 80) -> str:
    """A wrong value as a message quotes it: its ``repr`` on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an int of thousands of digits, or a repr of the user's own
        text = f"of type {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


class CancelledError(Exception):
    """A call was cancelled, from another thread, by a signal or by its own callback."""

    def __init__(self, message: str = "the call was cancelled") -> None:
        super().__init__(message)


class UserError(ValueError):
    """Bad input, a bad bundle or a missing extra: one clear sentence that says what is wrong and how to mend it.

    The command line prints the sentence and exits with code 2, without a traceback. Library callers may catch it;
    it is a :class:`ValueError`. Names from files stand in it as they are, so a very long sentence is cut in its middle.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > MAX_SENTENCE:
            # The end holds the remedy.
            sentence = f"{sentence[: MAX_SENTENCE * 2 // 3]}[...]{sentence[-MAX_SENTENCE // 4 :]}"
        super().__init__(sentence)


class BackendError(UserError):
    """A backend that was chosen cannot load a stage on this machine; with device "auto" the next one is taken."""


class DerivedFileError(UserError):
    """A file that ``consisti2v build`` made is missing or damaged; what does not use it runs."""
