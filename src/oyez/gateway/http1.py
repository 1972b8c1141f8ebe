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

from oyez.gateway.heads import Known

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

_NAMING: Final = frozenset((b"idempotency-key", b"traceparent", b"x-request-id"))
_OLD: Final[dict[bytes, bool]] = {b"HTTP/1.1": False, b"HTTP/1.0": True}
_STATUSES: Final[dict[bytes, int]] = {b"%d" % status: status for status in range(100, 600)}
_CHUNKED: Final = -1
_TO_THE_END: Final = -2
"""Instead of a body's length: how its end is found."""
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


class RequestLine(Known):
    """The first line of a request. ``old`` is HTTP/1.0, whose connections are then closed.

    ``path`` is the target without a query, ``onward`` the line as HTTP/1.1 has it.
    """

    def __init__(self, method: str, target: bytes, old: bool) -> None:
        super().__init__()
        self.method = method
        self.target = target
        self.old = old
        self.path: bytes = target.partition(b"?")[0]
        self.onward: bytes = b"%b %b HTTP/1.1\r\n" % (method.encode(), target)


class Section(Known):
    """The headers of a request: all of its head but the first line.

    ``closes`` is whether its connection is closed after the answer. ``accepted`` is set once they
    were found to be what the gateway accepts.
    """

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self.fields = fields
        self.closes: bool = closes(fields)
        self.accepted = False

    @property
    def is_unique(self) -> bool:
        """Whether a client is not expected to send the same again: it names this one request."""
        return not _NAMING.isdisjoint(self.fields)


class RequestHead:
    """The first part of a request: its first line and its headers, which fit together.

    ``body`` is None without one. Raises :class:`Malformed`.
    """

    def __init__(self, line: RequestLine, section: Section) -> None:
        self.line = line
        self.section = section
        self.method: str = line.method
        self.target: bytes = line.target
        self.old: bool = line.old
        self.fields: Fields = section.fields
        hosts = self.fields.get(b"host")
        if not line.old if hosts is None else len(hosts) != 1:
            raise Malformed("not one host")
        self.body: Body | None = _request_body(self.fields, line.old)


class AnswerHead(Known):
    """The first part of an answer. ``reusable``: another may follow on its connection."""

    def __init__(self, status: int, fields: Fields, length: int, reusable: bool) -> None:
        super().__init__()
        self.status = status
        self.fields = fields
        self.reusable = reusable
        self._length = length

    @property
    def sized(self) -> bool:
        """Whether it says how long the body is."""
        return self._length >= 0

    @property
    def endless(self) -> bool:
        """Whether the body ends with its connection."""
        return self._length == _TO_THE_END

    def body(self) -> Body:
        """Return the framing of the body of such an answer."""
        if self._length >= 0:
            return Sized(self._length)
        return Chunked() if self._length == _CHUNKED else UntilClosed()


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
    return RequestHead(request_line(line), Section(fields))


def request_line(line: bytes) -> RequestLine:
    """Return what the first line of a request says. Raises :class:`Malformed`."""
    words = line.split(b" ")
    if len(words) != 3 or not words[1] or words[2] not in _OLD:
        raise Malformed("no request line")
    if words[1].translate(None, _TARGET):
        raise Malformed("not the target of a request")
    method = _methods.get(words[0])
    if method is None:
        method = _method(words[0])
    return RequestLine(method, words[1], _OLD[words[2]])


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
    length = _answer_length(status, fields, old, to_head)
    kept = not old and length != _TO_THE_END and not closes(fields)
    return AnswerHead(status, fields, length, kept)


def switched(answer: AnswerHead) -> AnswerHead:
    """Return the head of an answer after which its connection has another protocol."""
    return AnswerHead(answer.status, answer.fields, _TO_THE_END, reusable=False)


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
        _refuse_other_codings(fields)
        return Chunked()
    if b"content-length" in fields:
        length = _length(fields)
        return Sized(length) if length else None
    return None


def _answer_length(status: int, fields: Fields, old: bool, to_head: bool) -> int:
    """Return the bytes of a body, or how its end is found."""
    if b"transfer-encoding" in fields and (old or b"content-length" in fields):
        raise Malformed("the length is given twice, or in a way that HTTP/1.0 lacks")
    length = _length(fields) if b"content-length" in fields else _TO_THE_END
    if b"transfer-encoding" in fields:
        _refuse_other_codings(fields)
        length = _CHUNKED
    return 0 if to_head or status in (204, 304) or status < 200 else length


def _refuse_other_codings(fields: Fields) -> None:
    codings = fields[b"transfer-encoding"]
    if len(codings) != 1 or codings[0].lower() != b"chunked":
        raise Malformed("a transfer coding that is not chunked")


def _length(fields: Fields) -> int:
    lengths = fields[b"content-length"]
    if len(lengths) != 1 or not lengths[0].isdigit() or len(lengths[0]) > _MOST_DIGITS:
        raise Malformed("not one length")
    return int(lengths[0])
