from __future__ import annotations

import itertools
import smtplib
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from outside.mailbox import MESSAGE_LIMIT, RECIPIENT_LIMIT

numbers = itertools.count()


@pytest.fixture(scope="module")
def mailbox(start_for_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return start_for_module("mailbox", tmp_path_factory.mktemp("mailbox"))


@pytest.fixture
def smtp(mailbox: Any) -> Iterator[smtplib.SMTP]:
    host, _, port = mailbox.addresses["smtp"].rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=20) as connection:
        yield connection


@pytest.fixture
def to() -> str:
    return f"buyer{next(numbers)}@example.org"


def mail(to: str, message_id: str = "", subject: str = "Shipped", text: str = "Soon.") -> Any:
    message = EmailMessage()
    message["From"] = "shop@example.org"
    message["To"] = to
    message["Subject"] = subject
    message["Message-ID"] = message_id or f"<{to}>"
    message["X-Order"] = "order-1"
    message["X-Stage"] = "shipped"
    message.set_content(text)
    return message


def kept(mailbox: Any, to: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mailbox.http.get("/messages.json", params={"to": to}).json()
    return found


def test_a_mail_is_kept(mailbox: Any, smtp: smtplib.SMTP, to: str) -> None:
    smtp.send_message(mail(to, subject="Grüße", text="Your lantern ✓\nis on its way."))
    (message,) = kept(mailbox, to)
    assert message.pop("received_at").endswith("Z")
    assert message == {
        "message_id": f"<{to}>",
        "to": to,
        "subject": "Grüße",
        "text": "Your lantern ✓\nis on its way.\n",
        "order": "order-1",
        "stage": "shipped",
        "repeats": 0,
    }


def test_a_repeat_is_accepted_and_counted(mailbox: Any, smtp: smtplib.SMTP, to: str) -> None:
    for _ in range(3):
        smtp.send_message(mail(to))
    (message,) = kept(mailbox, to)
    assert message["repeats"] == 2


def test_mails_without_an_id_are_told_apart(mailbox: Any, smtp: smtplib.SMTP, to: str) -> None:
    smtp.sendmail("a@example.org", [to], b"Subject: one\r\n\r\nfirst")
    smtp.sendmail("a@example.org", [to], b"Subject: one\r\n\r\nsecond")
    smtp.sendmail("a@example.org", [to], b"Subject: one\r\n\r\nsecond")
    assert [message["repeats"] for message in kept(mailbox, to)] == [0, 1]


def test_markup_is_shown_as_text(mailbox: Any, smtp: smtplib.SMTP, to: str) -> None:
    nasty = "<script>alert(1)</script>"
    message = mail(to, subject=nasty, text=nasty)
    message.replace_header("X-Stage", nasty)
    smtp.send_message(message)
    listed = mailbox.http.get("/")
    opened = mailbox.http.get(f"/messages/{_number(listed.text)}")
    for page in (listed, opened):
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;alert" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert " style=" not in page.text


def _number(page: str) -> int:
    return int(page.split('href="/messages/', 1)[1].split('"', 1)[0])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe",
        b"Subject: =?no-such-charset?b?AAAA?=\r\n\r\nx",
        b"Subject: =?utf-8?b?!!!?=\r\n\r\nx",
        b"Message-ID: <a\r\n\r\nx",
        b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xe4",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n@@@",
        b"Subject: \x1b[31mred\r\n\r\n\x1b[31mred\x07",
    ],
)
def test_a_malformed_mail_is_kept_as_far_as_it_goes(
    mailbox: Any, smtp: smtplib.SMTP, to: str, content: bytes
) -> None:
    smtp.sendmail("a@example.org", [to], content)
    (message,) = kept(mailbox, to)
    assert not set(message["subject"] + message["text"]) & set("\0\x07\x1b")


def test_a_deeply_nested_mail_harms_nobody(mailbox: Any, smtp: smtplib.SMTP, to: str) -> None:
    nested = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (depth, depth)
        for depth in range(2000)
    )
    with pytest.raises(smtplib.SMTPDataError) as refused:
        smtp.sendmail("a@example.org", [to], nested)
    assert refused.value.smtp_code == 554
    smtp.send_message(mail(to))
    assert len(kept(mailbox, to)) == 1


def test_a_large_mail_is_refused(mailbox: Any, smtp: smtplib.SMTP, to: str) -> None:
    line = b"x" * 76 + b"\r\n"
    content = b"Subject: big\r\n\r\n" + line * (MESSAGE_LIMIT // len(line) + 1)
    # Without the SIZE of smtplib, which would be refused before a byte of the mail is sent.
    smtp.ehlo()
    smtp.mail("a@example.org")
    smtp.rcpt(to)
    assert smtp.data(content)[0] == 552
    assert kept(mailbox, to) == []


def test_too_many_recipients_are_refused(smtp: smtplib.SMTP, to: str) -> None:
    recipients = [f"{number}-{to}" for number in range(RECIPIENT_LIMIT + 1)]
    refused = smtp.sendmail("a@example.org", recipients, b"Subject: many\r\n\r\nx")
    assert list(refused) == [recipients[-1]]


@pytest.mark.parametrize("path", ["/messages/0", "/messages/x", "/messages/" + "9" * 30, "/none"])
def test_an_unknown_page_is_a_problem(mailbox: Any, path: str) -> None:
    answer = mailbox.http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/style.css", "/icon.svg", "/renew.js", "/healthz"])
def test_the_pages_are_there(mailbox: Any, path: str) -> None:
    assert mailbox.http.get(path).status_code == 200


def test_kill_9_loses_no_accepted_mail(start: Any, tmp_path: Path) -> None:
    running = start("mailbox", tmp_path)
    host, _, port = running.addresses["smtp"].rpartition(":")
    accepted: list[str] = []
    enough = threading.Event()

    def send_until_it_dies() -> None:
        try:
            with smtplib.SMTP(host, int(port), timeout=20) as connection:
                for number in itertools.count():
                    connection.send_message(mail("b@example.org", f"<{number}@shop>"))
                    accepted.append(f"<{number}@shop>")
                    if number == 10:
                        enough.set()
        except (smtplib.SMTPException, OSError):
            return

    sender = threading.Thread(target=send_until_it_dies)
    sender.start()
    assert enough.wait(30)
    running.kill()
    sender.join(30)
    found = kept(start("mailbox", tmp_path), "b@example.org")
    assert set(accepted) <= {message["message_id"] for message in found}
