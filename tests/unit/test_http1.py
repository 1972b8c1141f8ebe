"""The gateway's parser against h11: what it accepts, h11 reads in the same way."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oyez.gateway.http1 import Chunked, Malformed, answer_head, end_of_head, request_head

LIMIT = 16_384

# Pieces that are right in some places and wrong in others, so that many heads are nearly right.
PIECES = st.sampled_from(
    [
        *("GET", "POST", "/", "/a?b", "*", " ", "  ", "\t", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0"),
        *(
            "\r\n",
            "\r\n",
            "\r\n",
            "\n",
            "\r",
            "\r\n\r\n",
            ":",
            ": ",
            ",",
            ";",
            "\x00",
            "\x7f",
            "\xe9",
        ),
        *("Host: x", "host:y", "a: b", "a : b", "a:", "1", "5", "05", "+1", "-1", "0x1", "chunked"),
        *("Content-Length: ", "Transfer-Encoding: ", "Connection: close", "identity", "gzip"),
    ]
)
WELL = st.sampled_from(
    [
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "POST /a HTTP/1.1\r\nHost: x\r\n",
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n",
        "GET / HTTP/1.0\r\n",
    ]
)
TEXT = st.lists(PIECES, max_size=8).map("".join)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A good beginning with a nearly good rest, cut and mended anywhere."""
    text = draw(WELL) + draw(TEXT)
    place = draw(st.integers(0, len(text)))
    return (text[:place] + draw(TEXT | st.just("")) + text[place:] + "\r\n\r\n").encode("latin-1")


def by_h11(data: bytes) -> tuple[h11.Request, bytes, bytes]:
    """The request, the content of its body that has arrived, and what follows."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    content = b""
    while isinstance(event := connection.next_event(), h11.Data):
        content += event.data
    return request, content, connection.trailing_data[0]


@given(heads())
def test_what_is_accepted_h11_reads_in_the_same_way(data: bytes) -> None:
    try:
        end = end_of_head(data, LIMIT)
        head = request_head(data[:end])
        content = head.body.feed(data[end:]) if head.body else b""
    except Malformed:
        return
    request, their_content, their_rest = by_h11(data)
    assert (request.method, request.target) == (head.method.encode(), head.target)
    assert head.old == (request.http_version == b"1.0")
    theirs = sorted((name, value) for name, value in request.headers)
    assert sorted((n, v) for n, values in head.fields.items() for v in values) == theirs
    assert content == their_content
    if head.body is None or head.body.done:
        assert (head.body.rest if head.body else data[end:]) == their_rest


@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=5),
    st.binary(max_size=10),
    st.lists(st.integers(1, 9), min_size=1, max_size=60),
)
def test_chunks_in_any_pieces(parts: list[bytes], rest: bytes, sizes: list[int]) -> None:
    data = b"".join(b"%X;x=1\r\n%b\r\n" % (len(part), part) for part in parts)
    data += b"0\r\na: b\r\n\r\n"
    body, content, at = Chunked(), b"", 0
    for size in [*sizes, len(data)]:
        content += body.feed(data[at : at + size])
        at = min(at + size, len(data))
    assert (body.done, content, body.rest) == (True, b"".join(parts), b"")
    whole = Chunked()
    assert (whole.feed(data + rest), whole.rest) == (b"".join(parts), rest)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_chunks_are_read_as_h11_reads_them(text: str) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    data, body = text.encode("latin-1"), Chunked()
    try:
        content = body.feed(data)
    except Malformed:
        return
    if body.done:
        _, their_content, their_rest = by_h11(head + data)
        assert (content, body.rest) == (their_content, their_rest)


def test_a_head_in_any_pieces() -> None:
    data = b"POST /open HTTP/1.1\r\nHost: x\r\nA: \xe9 b \t\r\nContent-Length: 2\r\n\r\nab"
    ends = {end_of_head(data[:size], LIMIT) for size in range(1, len(data) + 1)}
    assert ends == {0, len(data) - 2}


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"\r\nGET", b"GET / HTTP/1.1\nHo", b"GET /\ra"])
def test_what_begins_no_request_is_refused_before_its_end(data: bytes) -> None:
    with pytest.raises(Malformed):
        end_of_head(data, LIMIT)


LOOSE_ANSWERS = [
    b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\na : b\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/3.0 200 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
]


@pytest.mark.parametrize("head", LOOSE_ANSWERS)
def test_loose_answers_are_refused(head: bytes) -> None:
    with pytest.raises(Malformed):
        answer_head(head, to_head=False)
