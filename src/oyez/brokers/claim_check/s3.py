"""A bucket of S3, or of what speaks its protocol, as a storage.

``s3://BUCKET/PREFIX``, credentials from where AWS tools look for them, or before the bucket as
``KEY:SECRET@``. A put replaces, so data that is stored again is new again. Deleting is left to a
lifecycle rule of the bucket, which `S3.inspect` looks for.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import aiobotocore.session  # type: ignore[import-untyped]
import aiohttp
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as AwsConnectionError,
)

from oyez.brokers.claim_check.storage import CONCURRENT, MARGIN
from oyez.endpoint import Endpoint, Tls, mistrust, redact
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
        self._endpoint = endpoint
        self._options = options
        self._retention = retention
        self._client: Any = None
        self._closing = AsyncExitStack()
        self._opening = asyncio.Lock()

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
        """See `Storage.get`."""
        answer = await self._call("get_object", Key=self._folder + name)
        if answer is None:
            return None
        data = bytearray()
        try:
            async with answer["Body"] as body:
                while len(data) <= most and (more := await body.read(most + 1 - len(data))):
                    data += more
        except (aiohttp.ClientError, BotoCoreError, OSError) as error:
            raise self._out_of_reach("get_object", error) from error
        return bytes(data)

    async def sweep(self) -> None:
        """See `Storage.sweep`: a lifecycle rule does it."""

    async def inspect(self) -> Sequence[Finding]:
        """See `Storage.inspect`."""
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
        """See `Storage.close`."""
        self._client = None
        await self._closing.aclose()

    def _judge(self, rules: Sequence[dict[str, Any]], days: int) -> list[Finding]:
        found = []
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
            if expiration.get("Days", 0) < days:
                found.append(
                    Finding(
                        grave=True,
                        what=f"lifecycle rule {rule.get('ID', '')!r} of bucket {self._bucket} "
                        "deletes the data of events that the broker still keeps",
                        remedy=f"let it expire objects after {days} days",
                    )
                )
        if not expires:
            found.append(
                Finding(
                    grave=False,
                    what=f"no lifecycle rule of bucket {self._bucket} deletes old data below "
                    f"{self._folder or 'it'}: it only grows",
                    remedy=f"add a rule that expires objects after {days} days",
                )
            )
        return found

    # -- requests ---------------------------------------------------------------------------------

    async def _call(self, operation: str, **parameters: Any) -> dict[str, Any] | None:
        """The answer; None for an object, or for lifecycle rules, that don't exist."""
        try:
            client = self._client or await self._connect()
            answer: dict[str, Any] = await getattr(client, operation)(
                Bucket=self._bucket, **parameters
            )
            return answer
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if (operation == "get_object" and code in _GONE) or code == _NO_RULES:
                return None
            raise self._explain(operation, code, error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise BrokerRefused(
                f"{self._endpoint.url}: no AWS credentials were found: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, a profile or a role, or USER:PASSWORD in system.claim_check"
            ) from error
        except (AwsConnectionError, HTTPClientError, OSError) as error:
            if told := mistrust(error):
                raise BrokerRefused(f"{self.where}: {told}") from error
            raise self._out_of_reach(operation, error) from error
        except BotoCoreError as error:
            raise BrokerRefused(f"{self._endpoint.url}: {operation}: {error}") from error

    async def _connect(self) -> Any:
        async with self._opening:
            if self._client is None:
                options, endpoint = self._options, self._endpoint
                certificate: Any = options.certfile
                if certificate is not None and options.keyfile is not None:
                    certificate = (options.certfile, options.keyfile)
                config = AioConfig(
                    retries={"total_max_attempts": TRIES, "mode": "standard"},
                    max_pool_connections=CONCURRENT,
                    client_cert=certificate,
                    tcp_keepalive=True,
                    # Servers that are not AWS may know no other checksums than the one we send.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path"} if options.endpoint else None,
                )
                client = aiobotocore.session.get_session().create_client(
                    "s3",
                    region_name=options.region,
                    endpoint_url=options.endpoint,
                    verify=options.cafile,
                    aws_access_key_id=endpoint.user,
                    aws_secret_access_key=endpoint.password,
                    config=config,
                )
                self._client = await self._closing.enter_async_context(client)
            return self._client

    def _explain(self, operation: str, code: str, error: ClientError) -> BrokerError:
        answer: Any = error.response
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _BUSY or status >= 500 or status == 429:
            return BrokerUnavailable(f"{self.where} is busy ({operation}: {code})")
        if status == 403:
            return BrokerRefused(
                f"{self.where} forbids {operation} ({code}): allow s3:PutObject, s3:GetObject and "
                "s3:ListBucket (without which a missing object looks forbidden), renew the "
                "credentials, or set the clock right"
            )
        text = answer.get("Error", {}).get("Message", "")
        return BrokerRefused(f"{self.where}: {operation}: {code}: {text}")

    def _out_of_reach(self, operation: str, error: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"{self.where} is out of reach for {operation}: {type(error).__name__}"
        )


def _scope(rule: dict[str, Any]) -> tuple[str, bool]:
    """What a lifecycle rule's objects begin with, and whether it leaves out some of those."""
    scope = rule.get("Filter", {})
    scope = scope.get("And", scope)
    return rule.get("Prefix") or scope.get("Prefix", ""), bool(scope.keys() - {"Prefix"})
