"""Why a dead letter is not redriven, in words that fit the console's forms."""

from __future__ import annotations

_WORDS = {
    "old": "It is older than the time for which duplicates are recognised. If the event can't "
    "arrive in another way, redrive it with “also if it is old”.",
    "expired": "It is a command that has expired, and its sender has gone on without it. If it is "
    "to be done all the same, redrive it with “also if it is old”.",
    "unpublished": "It was never published, so it has no handler: redrive it without choosing one.",
    "unreadable": "It could not be read, so no handler is known: choose one, and edit the payload.",
    "renamed": "Its handler is one that the service no longer has: choose another.",
}


def in_words(cause: str, text: str) -> str:
    """Return why: by the cause of `oyez.errors.NotRedriven`; the text itself without one."""
    return _WORDS.get(cause, text)
