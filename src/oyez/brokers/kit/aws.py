"""Clients of AWS, or of what speaks its protocols, and what goes wrong before it answers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import aiobotocore.session  # type: ignore[import-untyped]
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

from oyez.endpoint import Endpoint, Tls, mistrust
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable

FAILURES = (BotoCoreError, OSError)
"""What the driver raises where AWS did not answer; see `explain`."""


class Clients:
    """One client for each service, made when it is first wanted."""

    def __init__(
        self, endpoint: Endpoint, tls: Tls, *, region: str | None, url: str | None, **config: Any
    ) -> None:
        """Connect to nothing yet.

        ``url`` is the address of what is not AWS itself, ``config`` further settings of the driver.
        """
        self.session = aiobotocore.session.get_session()
        certificate: Any = tls.certfile
        if certificate is not None and tls.keyfile is not None:
            certificate = (tls.certfile, tls.keyfile)
        self._settings = {
            "region_name": region,
            "endpoint_url": url,
            "verify": tls.cafile,
            "aws_access_key_id": endpoint.user,
            "aws_secret_access_key": endpoint.password,
            "config": AioConfig(client_cert=certificate, tcp_keepalive=True, **config),
        }
        self._made: dict[str, Any] = {}
        self._closing = AsyncExitStack()
        self._opening = asyncio.Lock()

    async def get(self, service: str) -> Any:
        """Return the client of a service."""
        async with self._opening:
            if service not in self._made:
                client = self.session.create_client(service, **self._settings)
                self._made[service] = await self._closing.enter_async_context(client)
            return self._made[service]

    async def close(self) -> None:
        """End every connection. Safe when never opened and when called twice."""
        self._made = {}
        await self._closing.aclose()


def explain(error: Exception, where: str, action: str, setting: str) -> BrokerError:
    """Return one of `FAILURES` as an error of ours; ``setting`` is where the URL stands."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return BrokerRefused(
            f"{where}: no AWS credentials were found: set AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, a profile or a role, or USER:PASSWORD in {setting}"
        )
    if isinstance(error, AwsConnectionError | HTTPClientError | OSError):
        if told := mistrust(error):
            return BrokerRefused(f"{where}: {told}")
        return BrokerUnavailable(f"{where} is out of reach for {action}: {type(error).__name__}")
    return BrokerRefused(f"{where}: {action}: {error}")


def answered(error: ClientError) -> tuple[str, str, int]:
    """Return code, text and HTTP status of what AWS says no with."""
    answer: Any = error.response
    told = answer.get("Error", {})
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return str(told.get("Code", "")), str(told.get("Message", "")), status
