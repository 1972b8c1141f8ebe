"""The safe path of a request, and what answers there. A path without a route is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.step import Answer

# Encoded separators and dots, and whatever is encoded twice: a service that decodes once more than
# the gateway, or cuts at ";", would see another path than the one admitted.
_DISGUISED = re.compile(
    r"//|;|\\|%(?:2e|2f|5c|3b|00)|%25[0-9a-f]{2}|%(?![0-9a-f]{2})", re.IGNORECASE
)
# Most paths have nothing else: nothing is encoded.
_PLAIN: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-/"


def safe_path(exchange: Exchange) -> str:
    """Return the decoded path of the request; raises :class:`Refusal` (400) if it is ambiguous."""
    sent = exchange.path
    ends = sent.startswith(b"/") and not sent.endswith(b"/")
    if ends and b"//" not in sent and b"/." not in sent and not sent.translate(None, _PLAIN):
        return sent.decode()
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
        self._below: dict[str, Target] = {}
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
            begin = "" if path == "/" else path
            target = self._below.setdefault(begin, Target(path, {}))
            self._deepest = max(self._deepest, begin.count("/"))
        target.answers.update(dict.fromkeys(methods, answer))
        if "GET" in target.answers:
            target.answers.setdefault("HEAD", target.answers["GET"])

    def match(self, path: str) -> Target | None:
        """Return the target of a path; None without one."""
        found = self._exact.get(path)
        if found is not None:
            return found
        found, end = self._below.get(""), 0
        for _ in range(self._deepest):
            end = path.find("/", end + 1)
            longer = self._below.get(path if end < 0 else path[:end])
            if longer is not None:
                found = longer
            if end < 0:
                break
        return found


class Target:
    """What answers at a path: its ``label`` in logs, and an answer by method."""

    def __init__(self, label: str, answers: dict[str, Answer]) -> None:
        self.label = label
        self.answers = answers

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
