"""The safe path of a request, and what answers there. A path without a route is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.step import Answer

# Encoded separators and dots, and whatever is encoded twice: a service that decodes once more than
# the gateway, or cuts at ";", would see another path than the one admitted.
_DISGUISED = re.compile(
    r"//|;|\\|%(?:2e|2f|5c|3b|00)|%25[0-9a-f]{2}|%(?![0-9a-f]{2})", re.IGNORECASE
)
# Most paths: nothing is encoded, and no segment is empty or begins with a dot.
_PLAIN = re.compile(rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*+)++")


def safe_path(exchange: Exchange) -> str:
    """Return the decoded path of the request; raises :class:`Refusal` (400) if it is ambiguous."""
    if _PLAIN.fullmatch(exchange.path):
        return exchange.path.decode()
    try:
        raw = exchange.path.decode("ascii")
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raw = path = ""
    plain = raw.startswith("/") and not is_disguised(raw)
    dots = any(segment in (".", "..") for segment in path.split("/"))
    if not plain or dots or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise Refusal(400, "bad_path", "the path is malformed or ambiguous")
    return path


def is_disguised(path: str) -> bool:
    """Return whether a path, as it is sent, is one that another reader may take for another."""
    return _DISGUISED.search(path) is not None


class Routes:
    """What answers at which path: the longest matching path applies, on whole segments."""

    def __init__(self) -> None:
        self._exact: dict[str, Target] = {}
        self._below: dict[tuple[str, ...], Target] = {}
        self._deepest = 0

    def add(
        self, path: str, methods: Iterable[str], answer: Answer, *, exact: bool = False
    ) -> None:
        """Answer requests of these methods to a path and everything below it.

        Where GET is answered, so is HEAD. ``exact``: to the path alone, before any other.
        """
        if exact:
            target = self._exact.setdefault(path, Target(path, {}))
        else:
            segments = _segments(path)
            target = self._below.setdefault(segments, Target(path, {}))
            self._deepest = max(self._deepest, len(segments))
        target.answers.update(dict.fromkeys(methods, answer))
        if "GET" in target.answers:
            target.answers.setdefault("HEAD", target.answers["GET"])

    def match(self, path: str) -> Target | None:
        """Return the target of a path; None without one."""
        if path in self._exact:
            return self._exact[path]
        segments = _segments(path)
        for length in range(min(len(segments), self._deepest), -1, -1):
            target = self._below.get(segments[:length])
            if target is not None:
                return target
        return None


class Target(NamedTuple):
    """What answers at a path: its name in logs, and an answer by method."""

    label: str
    answers: dict[str, Answer]

    def answer(self, method: str) -> Answer:
        """Return what answers a method; raises :class:`Refusal` (405) where nothing does."""
        found = self.answers.get(method)
        if found is None:
            raise not_allowed(*self.answers)
        return found


def not_allowed(*methods: str) -> Refusal:
    """Return the refusal of any method but these."""
    allow = ", ".join(sorted(methods))
    return Refusal(
        405, "method_not_allowed", f"allowed here: {allow}", [(b"allow", allow.encode())]
    )


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:]) if path != "/" else ()
