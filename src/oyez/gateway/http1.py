"""HTTP/1.1 read strictly (RFC 9110, RFC 9112): the heads and bodies of requests and of answers.

Where two servers read the same bytes differently, a client can smuggle a request past the one that
checks it. So nothing is repaired here: no bare CR or LF, no folded line, no space before a colon,
no control character, one length at most. What this accepts, h11 reads in the same way; a test
compares them.

A head is checked a whole at a time, by what the bytes' own methods can do: they are several times
faster than a regular expression.
"""

from __future__ import annotations

import re
from typing import Final

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, and values."""
Fields = dict[bytes, list[bytes]]
"""All values of each header, in order, by its name in lower case."""

_MOST_HEADERS: Final = 100
_MOST_DIGITS: Final = 18
_MOST_LINE: Final = 4096
"""Bytes of a chunk's size with its extensions, and of all trailers."""
_REMEMBERED: Final = 256
"""Names of headers, as they are written, that are known to be well-formed."""

_VISIBLE: Final = bytes(range(0x21, 0x7F))
_TEXT: Final = b"\t " + _VISIBLE + bytes(range(0x80, 0x100))
# A target has no fragment: a server that cuts one off would see another path than was admitted.
_TARGET: Final = _VISIBLE.replace(b"#", b"")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
# A first byte that begins no method, half of CRLF, or a line that continues the previous one.
_HOPELESS = re.compile(rb"\A[^!#$%&'*+.^_`|~0-9A-Za-z-]|\r(?!\n|\Z)|(?<!\r)\n|\n[ \t]")

_OLD: Final[dict[bytes, bool]] = {b"HTTP/1.1": False, b"HTTP/1.0": True}
_STATUSES: Final[dict[bytes, int]] = {b"%d" % status: status for status in range(100, 600)}
_SIZE: Final = "size"
_END: Final = "end"
_TRAILER: Final = "trailer"

_names: Final[dict[bytes, bytes]] = {}
_methods: Final[dict[bytes, str]] = {}
"""What heads wrote of late, as it is read. A stranger who fills them makes them begin anew."""


class Malformed(Exception):
    """Bytes that are not well-formed HTTP/1.1, or are more than is allowed (``too_large``)."""

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


class Body:
    """The framing of one body: what is content in the bytes of a connection."""

    def __init__(self) -> None:
        self.done: bool = False
        """Whether the body has ended."""
        self.rest: bytes = b""
        """The bytes behind it, once it has ended."""

    def feed(self, data: bytes) -> bytes:
        """Return the content in the next bytes. Raises :class:`Malformed`."""
        raise NotImplementedError


class RequestHead:
    """The first part of a request.

    ``old`` is HTTP/1.0, whose connections are closed after the answer. ``body`` is None without
    one.
    """

    def __init__(
        self, method: str, target: bytes, old: bool, fields: Fields, body: Body | None
    ) -> None:
        self.method = method
        self.target = target
        self.old = old
        self.fields = fields
        self.body = body


class AnswerHead:
    """The first part of an answer. ``reusable``: another may follow on its connection."""

    def __init__(self, status: int, fields: Fields, body: Body, reusable: bool) -> None:
        self.status = status
        self.fields = fields
        self.body = body
        self.reusable = reusable


def end_of_head(data: bytes, limit: int) -> int:
    """Return the length of the head that ``data`` begins with, 0 if its end is missing.

    Raises :class:`Malformed` for one over the limit, and as soon as no head can begin like this.
    """
    end = data.find(b"\r\n\r\n", 0, limit) + 4
    if end > 3:
        return end
    if _HOPELESS.search(data[:limit]):
        raise Malformed("not the beginning of a head")
    if len(data) >= limit:
        raise Malformed(f"a head over {limit} bytes", too_large=True)
    return 0


def request_head(head: bytes) -> RequestHead:
    """Return what the head of a request says. Raises :class:`Malformed`."""
    line, fields = _lines(head)
    words = line.split(b" ")
    if len(words) != 3 or not words[1] or words[2] not in _OLD:
        raise Malformed("no request line")
    if words[1].translate(None, _TARGET):
        raise Malformed("not the target of a request")
    old, hosts = _OLD[words[2]], fields.get(b"host")
    if not old if hosts is None else len(hosts) != 1:
        raise Malformed("not one host")
    method = _methods.get(words[0])
    if method is None:
        method = _method(words[0])
    return RequestHead(method, words[1], old, fields, _request_body(fields, old))


def answer_head(head: bytes, *, to_head: bool) -> AnswerHead:
    """Return what the head of an answer says, ``to_head`` of one to a HEAD request.

    Raises :class:`Malformed`.
    """
    line, fields = _lines(head)
    words = line.split(b" ", 2)
    old = _OLD.get(words[0])
    status = _STATUSES.get(words[1]) if len(words) > 1 else None
    if old is None or status is None:
        raise Malformed("no status line")
    body = _answer_body(status, fields, old, to_head)
    kept = not old and not isinstance(body, UntilClosed) and not closes(fields)
    return AnswerHead(status, fields, body, kept)


def closes(fields: Fields) -> bool:
    """Return whether ``Connection: close`` is among the headers."""
    if b"connection" not in fields:
        return False
    options = b",".join(fields[b"connection"]).lower().split(b",")
    return any(option.strip() == b"close" for option in options)


class Sized(Body):
    """A body of a known number of bytes."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._left = length
        self.done = not length

    def feed(self, data: bytes) -> bytes:
        """Return the content in the next bytes."""
        left = self._left
        if len(data) < left:
            self._left -= len(data)
            return data
        self.done = True
        if len(data) == left:
            return data
        self.rest = data[left:]
        return data[:left]


class UntilClosed(Body):
    """The body of an answer that ends with its connection: whoever sees that sets ``done``."""

    def feed(self, data: bytes) -> bytes:
        """Return the content in the next bytes."""
        return data


class Chunked(Body):
    """A body in chunks; extensions and trailers are checked and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 0
        self._expected = _SIZE
        self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        """Return the content in the next bytes. Raises :class:`Malformed`."""
        data = self.rest + data
        at = 0
        content = []
        while not self.done:
            if self._left:
                piece = data[at : at + self._left]
                content.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
            end = data.find(b"\r\n", at, at + _MOST_LINE) + 2
            if end < 2:
                if len(data) - at >= _MOST_LINE:
                    raise Malformed("a line of a chunked body is too long")
                break
            self._read(data[at:end])
            at = end
        self.rest = data[at:]
        return b"".join(content)

    def _read(self, line: bytes) -> None:
        if self._expected == _SIZE:
            match = _CHUNK.fullmatch(line)
            if match is None:
                raise Malformed("not the size of a chunk")
            self._left = int(match[1], 16)
            self._expected = _END if self._left else _TRAILER
        elif self._expected == _END:
            if line != b"\r\n":
                raise Malformed("a chunk longer than its size")
            self._expected = _SIZE
        elif line == b"\r\n":
            self.done = True
        else:
            self._trailers += len(line)
            if self._trailers > _MOST_LINE:
                raise Malformed("the trailers are too long")
            _lines(b"\r\n" + line + b"\r\n")


def _lines(head: bytes) -> tuple[bytes, Fields]:
    """Return the first line of a head, and its headers."""
    lines = head.split(b"\r\n")
    # Without text only CRLFs remain: as many as there are lines, so no CR or LF stands alone.
    if head.translate(None, _TEXT) != b"\r\n" * (len(lines) - 1):
        raise Malformed("control characters")
    if len(lines) > _MOST_HEADERS + 3:
        raise Malformed(f"over {_MOST_HEADERS} headers", too_large=True)
    fields: Fields = {}
    for line in lines[1:-2]:
        written, colon, value = line.partition(b":")
        if not colon:
            raise Malformed("a header without a colon")
        name = _names.get(written)
        if name is None:
            name = _name(written)
        values = fields.get(name)
        if values is None:
            fields[name] = [value.strip(b" \t")]
        else:
            values.append(value.strip(b" \t"))
    return lines[0], fields


def _name(written: bytes) -> bytes:
    if not _NAME.fullmatch(written):
        raise Malformed("not the name of a header")
    if len(_names) >= _REMEMBERED:
        _names.clear()
    name = _names[written] = written.lower()
    return name


def _method(written: bytes) -> str:
    if not _NAME.fullmatch(written):
        raise Malformed("not a method")
    if len(_methods) >= _REMEMBERED:
        _methods.clear()
    method = _methods[written] = written.decode()
    return method


def _request_body(fields: Fields, old: bool) -> Body | None:
    if b"transfer-encoding" in fields:
        if old or b"content-length" in fields:
            raise Malformed("the length is given twice, or in a way that HTTP/1.0 lacks")
        return _chunked(fields)
    if b"content-length" in fields:
        length = _length(fields)
        return Sized(length) if length else None
    return None


def _answer_body(status: int, fields: Fields, old: bool, to_head: bool) -> Body:
    if b"transfer-encoding" in fields and (old or b"content-length" in fields):
        raise Malformed("the length is given twice, or in a way that HTTP/1.0 lacks")
    length = _length(fields) if b"content-length" in fields else None
    chunked = _chunked(fields) if b"transfer-encoding" in fields else None
    if to_head or status in (204, 304) or status < 200:
        return Sized(0)
    if chunked is not None:
        return chunked
    return UntilClosed() if length is None else Sized(length)


def _chunked(fields: Fields) -> Chunked:
    codings = fields[b"transfer-encoding"]
    if len(codings) != 1 or codings[0].lower() != b"chunked":
        raise Malformed("a transfer coding that is not chunked")
    return Chunked()


def _length(fields: Fields) -> int:
    lengths = fields[b"content-length"]
    if len(lengths) != 1 or not lengths[0].isdigit() or len(lengths[0]) > _MOST_DIGITS:
        raise Malformed("not one length")
    return int(lengths[0])
