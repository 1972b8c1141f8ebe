"""A bucket of S3, or of what speaks its protocol, as a storage.

``s3://BUCKET/PREFIX``, credentials from where AWS tools look for them, or before the bucket as
``KEY:SECRET@``. A put replaces, so data that is stored again is new again. Deleting is left to a
lifecycle rule of the bucket, which `S3.inspect` looks for.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import aiohttp
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from oyez.brokers.claim_check.storage import CONCURRENT, MARGIN
from oyez.brokers.kit.aws import FAILURES, Clients, answered, explain
from oyez.brokers.kit.findings import Findings
from oyez.endpoint import Endpoint, Tls, redact
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable
from oyez.ports import Finding

DAY = 86_400.0
TRIES = 3
"""Requests for one answer, within the caller's deadline: S3 asks to be asked again at times."""

_BUSY = frozenset("InternalError RequestTimeout ServiceUnavailable SlowDown Throttling".split())
_GONE = frozenset("404 NoSuchKey".split())
_NO_RULES = "NoSuchLifecycleConfiguration"


class S3Options(Tls, frozen=True, kw_only=True):
    """How a bucket is reached."""

    region: str | None = None
    """Where the bucket is; from the environment or the profile unless given."""
    endpoint: str | None = None
    """Address of a server that speaks S3, e.g. https://minio.example:9000; AWS unless given."""


class S3:
    """Objects below a prefix of one bucket; the face is `oyez.brokers.claim_check.Storage`."""

    def __init__(self, endpoint: Endpoint, options: S3Options, retention: float) -> None:
        (self._bucket, port), *others = endpoint.hosts
        if others or port != 443:
            raise endpoint.error("expected s3://BUCKET/PREFIX with nothing but options behind it")
        path = endpoint.path.strip("/")
        self._folder = f"{path}/" if path else ""
        self.where = f"bucket {self._bucket} at {redact(options.endpoint or 'AWS')}"
        self.prefix = f"s3://{self._bucket}/{quote(self._folder)}"
        self._retention = retention
        self._clients = Clients(
            endpoint,
            options,
            region=options.region,
            url=options.endpoint,
            retries={"total_max_attempts": TRIES, "mode": "standard"},
            max_pool_connections=CONCURRENT,
            # Servers that are not AWS may know no other checksums than the one we send.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if options.endpoint else None,
        )

    async def put(self, name: str, data: bytes) -> None:
        """See `Storage.put`. S3 checks the digest in the name before it answers."""
        digest = bytes.fromhex(name.partition("-")[0].replace("/", ""))
        await self._call(
            "put_object",
            Key=self._folder + name,
            Body=data,
            ChecksumSHA256=base64.b64encode(digest).decode(),
        )

    async def get(self, name: str, most: int) -> bytes | None:
        answer = await self._call("get_object", Key=self._folder + name)
        if answer is None:
            return None
        data = bytearray()
        try:
            async with answer["Body"] as body:
                while len(data) <= most and (more := await body.read(most + 1 - len(data))):
                    data += more
        except (aiohttp.ClientError, *FAILURES) as error:
            problem = f"{self.where} is out of reach for get_object: {type(error).__name__}"
            raise BrokerUnavailable(problem) from error
        return bytes(data)

    async def sweep(self) -> None:
        """See `Storage.sweep`: a lifecycle rule does it."""

    async def inspect(self) -> Sequence[Finding]:
        try:
            answer = await self._call("get_bucket_lifecycle_configuration")
        except BrokerRefused as error:
            return [
                Finding(
                    grave=False,
                    what=f"the lifecycle of {self.where} is not known: {error}",
                    remedy=f"see that the bucket {self._bucket} exists, and allow "
                    "s3:GetLifecycleConfiguration on it",
                )
            ]
        days = int(-(-(self._retention + MARGIN) // DAY))
        rules = [rule for rule in (answer or {}).get("Rules", ()) if rule["Status"] == "Enabled"]
        return self._judge(rules, days)

    async def close(self) -> None:
        await self._clients.close()

    def _judge(self, rules: Sequence[dict[str, Any]], days: int) -> list[Finding]:
        findings = Findings()
        expires = False
        for rule in rules:
            beginning, partial = _scope(rule)
            expiration = rule.get("Expiration", {})
            if not {"Days", "Date"} & expiration.keys():
                continue
            if self._folder.startswith(beginning) and not partial:
                expires = True
            elif not (self._folder.startswith(beginning) or beginning.startswith(self._folder)):
                continue
            findings.tell(
                expiration.get("Days", 0) < days,
                f"lifecycle rule {rule.get('ID', '')!r} of bucket {self._bucket} deletes the data "
                "of events that the broker still keeps",
                f"let it expire objects after {days} days",
            )
        findings.tell(
            not expires,
            f"no lifecycle rule of bucket {self._bucket} deletes old data below "
            f"{self._folder or 'it'}: it only grows",
            f"add a rule that expires objects after {days} days",
            grave=False,
        )
        return findings.found

    # -- requests ---------------------------------------------------------------------------------

    async def _call(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        """The answer; None for an object, or for lifecycle rules, that don't exist."""
        try:
            client = await self._clients.get("s3")
            answer: dict[str, Any] = await getattr(client, operation)(
                Bucket=self._bucket, **parameters
            )
            return answer
        except ClientError as error:
            code, text, status = answered(error)
            if (operation == "get_object" and code in _GONE) or code == _NO_RULES:
                return None
            raise self._explain(operation, code, text, status) from error
        except FAILURES as error:
            raise explain(error, self.where, operation, "system.claim_check") from error

    def _explain(self, operation: str, code: str, text: str, status: int) -> BrokerError:
        if code in _BUSY or status >= 500 or status == 429:
            return BrokerUnavailable(f"{self.where} is busy ({operation}: {code})")
        if status == 403:
            return BrokerRefused(
                f"{self.where} forbids {operation} ({code}): allow s3:PutObject, s3:GetObject and "
                "s3:ListBucket (without which a missing object looks forbidden), renew the "
                "credentials, or set the clock right"
            )
        return BrokerRefused(f"{self.where}: {operation}: {code}: {text}")


def _scope(rule: dict[str, Any]) -> tuple[str, bool]:
    """What a lifecycle rule's objects begin with, and whether it leaves out some of those."""
    scope = rule.get("Filter", {})
    scope = scope.get("And", scope)
    return rule.get("Prefix") or scope.get("Prefix", ""), bool(scope.keys() - {"Prefix"})
