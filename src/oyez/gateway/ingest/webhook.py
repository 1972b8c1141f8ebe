"""Webhooks of providers: each delivery, once its signature is checked, becomes an event."""

from __future__ import annotations

import re
from collections.abc import Mapping

from oyez import strict_json
from oyez.ambient import Ambient
from oyez.config import Config, WebhookSettings
from oyez.envelope import JSON, SPECVERSION, format_time, is_json, open_record
from oyez.errors import BadJson, InvalidEvent
from oyez.event import MAX_DATA, MAX_KEY
from oyez.gateway.exchange import Exchange, Refusal
from oyez.gateway.ingest.acceptance import accept
from oyez.gateway.ingest.publisher import Publisher
from oyez.gateway.ingest.signatures import GitHub, Scheme, Standard, Stripe, UnfitSecret
from oyez.ports import Record

_PLACE = re.compile(r"\{(header|body):([^{}]+)\}")
_PART = re.compile(r"[A-Za-z0-9._/-]{1,100}")
_LONGEST = 200
"""Characters of an event's type."""


class Webhook:
    """It takes the deliveries of one provider.

    The event's id is the delivery's, so one that is repeated is a duplicate; its data is the body
    as it came.
    """

    def __init__(
        self,
        config: Config,
        settings: WebhookSettings,
        publisher: Publisher,
        ambient: Ambient,
        timeout: float,
    ) -> None:
        """``timeout`` is the time, in seconds, that the broker has.

        Raises ConfigurationError for secrets that the scheme has no use for.
        """
        system = config.system.name
        self._settings = settings
        self._publisher = publisher
        self._ambient = ambient
        self._timeout = timeout
        self._stream = f"{system}.{settings.stream}"
        self._source = f"/{system}/gateway/webhooks/{settings.name}"
        try:
            self._scheme = _scheme(settings)
        except UnfitSecret as error:
            key = f"gateway.webhooks.{settings.name}.secrets"
            raise config.error(key, error.expected, error.found) from None

    async def __call__(self, exchange: Exchange) -> None:
        """Respond to one delivery; raises :class:`Refusal`."""
        body = await exchange.body()
        now = self._ambient.now()
        delivery = self._scheme.verify(exchange.fields, body, now)
        try:
            record = self._record(exchange, delivery, _content(exchange, body), body, now)
            self._publisher.check(record)
        except BadJson as error:
            raise Refusal(400, "bad_json", f"{error}") from None
        except InvalidEvent as error:
            raise Refusal(422, "invalid_event", f"{error}") from None
        await accept(exchange, [record], self._publisher, self._timeout)

    def _record(
        self, exchange: Exchange, delivery: str | None, content: object, body: bytes, now: float
    ) -> Record:
        settings = self._settings
        if delivery is None:
            delivery = _text(content, "id")
        if not delivery:
            raise InvalidEvent("$.id", "expected the id of the delivery")
        headers = {
            "specversion": SPECVERSION,
            "id": delivery,
            "source": self._source,
            "type": self._type(exchange, content),
            "time": format_time(now),
            "datacontenttype": JSON,
            "correlationid": delivery,
            "traceparent": exchange.traceparent,
            "authtype": "service_account",
            "authid": f"webhook:{settings.name}",
        }
        key = None if settings.key is None else _text(content, settings.key)
        if key is not None:
            if not (0 < len(key) <= MAX_KEY and key.isprintable()):
                problem = f"is the key: expected 1 to {MAX_KEY} printable characters"
                raise InvalidEvent(f"$.{settings.key}", problem)
            headers["subject"] = headers["partitionkey"] = key
        open_record(headers, body)
        return Record(stream=self._stream, key=key, headers=headers, data=body)

    def _type(self, exchange: Exchange, content: object) -> str:
        """Return the event's type: the pattern, with what this delivery has for its places."""

        def found(place: re.Match[str]) -> str:
            where, name = place.groups()
            text = exchange.value(name.lower().encode()) if where == "header" else None
            text = _text(content, name) if where == "body" else text
            if text is None or not _PART.fullmatch(text):
                raise InvalidEvent(f"{where} {name}", "is no part of a type: letters, digits, ._/-")
            return text

        text = _PLACE.sub(found, self._settings.type)
        if len(text) > _LONGEST:
            raise InvalidEvent("type", f"is {len(text)} characters; at most {_LONGEST} are allowed")
        return text


def _scheme(settings: WebhookSettings) -> Scheme:
    if settings.scheme == "standard":
        return Standard(settings.secrets, settings.tolerance)
    if settings.scheme == "stripe":
        return Stripe(settings.secrets, settings.tolerance)
    return GitHub(settings.secrets)


def _content(exchange: Exchange, body: bytes) -> object:
    """Return the JSON value in a body. Raises :class:`Refusal`, and InvalidEvent."""
    kinds = exchange.values(b"content-type")
    if len(kinds) != 1 or not is_json(kinds[0]):
        raise Refusal(415, "not_json", "have the provider send application/json")
    return strict_json.read(body, most=MAX_DATA)


def _text(content: object, name: str) -> str | None:
    """Return a field of the body as text, by its names with dots between; None without one."""
    for part in name.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    if isinstance(content, str):
        return content
    return str(content) if type(content) is int else None
