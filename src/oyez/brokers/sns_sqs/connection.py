"""The clients of both services: every call has a deadline and raises BrokerErrors only."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from oyez.ambient import Ambient
from oyez.brokers.kit.aws import FAILURES, Clients, answered, explain
from oyez.brokers.kit.calls import Deadline, Pauses
from oyez.brokers.sns_sqs.options import SnsSqsOptions
from oyez.endpoint import Endpoint
from oyez.errors import BrokerRefused, BrokerUnavailable

ATTEMPT = 5.0
"""Seconds for one request, besides what a long poll lasts."""
CONNECTIONS = 1_000
"""Connections at once, at most: a long poll has one for itself."""

_FORBIDDEN = frozenset(
    "AccessDenied AccessDeniedException AuthorizationError AuthorizationErrorException "
    "NotAuthorized UnauthorizedOperation KMS.AccessDeniedException KMSAccessDenied".split()
)
_CREDENTIALS = frozenset(
    "ExpiredToken ExpiredTokenException IncompleteSignature InvalidAccessKeyId "
    "InvalidClientTokenId InvalidSecurity InvalidSignatureException "
    "MissingAuthenticationToken OptInRequired RequestExpired SignatureDoesNotMatch "
    "UnrecognizedClientException".split()
)
_BUSY = frozenset(
    "InternalError InternalErrorException InternalFailure KMSThrottling KmsThrottled OverLimit "
    "QueueDeletedRecently RequestLimitExceeded RequestThrottled RequestThrottledException "
    "ServiceUnavailable SlowDown Throttled ThrottledException Throttling ThrottlingException "
    "TooManyRequestsException AWS.SimpleQueueService.QueueDeletedRecently".split()
)
_MISSING = frozenset(
    "AWS.SimpleQueueService.NonExistentQueue NonExistentQueue NotFound NotFoundException "
    "QueueDoesNotExist ResourceNotFound".split()
)
_DIFFERENT = frozenset("QueueAlreadyExists QueueNameExists".split())


class Busy(BrokerUnavailable):
    """AWS is there and asks to come again later."""


class Missing(BrokerRefused):
    """The queue or topic does not exist."""


class Different(BrokerRefused):
    """The queue, topic or subscription exists with other attributes."""


class Aws:
    """SNS and SQS in one region."""

    def __init__(self, endpoint: Endpoint, ambient: Ambient, options: SnsSqsOptions) -> None:
        ((self.region, _),) = endpoint.hosts
        self.where = options.endpoint or f"sns and sqs.{self.region}.amazonaws.com:443"
        """What is called, for people."""
        self._ambient = ambient
        self._options = options
        self._clients = Clients(
            endpoint,
            options,
            region=self.region,
            url=options.endpoint,
            retries={"total_max_attempts": 1},
            connect_timeout=ATTEMPT,
            read_timeout=options.wait + ATTEMPT,
            max_pool_connections=CONNECTIONS,
        )
        self.partition: str = self._clients.session.get_partition_for_region(self.region)
        """``aws``, ``aws-cn`` and the like: the second part of every ARN."""

    async def close(self) -> None:
        """End every connection. Safe when never opened and when called twice."""
        await self._clients.close()

    async def ask(self, service: str, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """The answer, asked for again while AWS is busy, until the deadline.

        A connection that broke may only have been idle for too long: that is tried twice.
        """
        until = self._ambient.monotonic() + self._options.deadline
        pauses = Pauses(self._ambient)
        while True:
            left = until - self._ambient.monotonic()
            try:
                return await self.call(service, operation, min(ATTEMPT, left), **parameters)
            except BrokerUnavailable as error:
                pause = pauses.next()
                late = self._ambient.monotonic() + pause >= until
                if late or (pauses.failures > 1 and not isinstance(error, Busy)):
                    raise
                await self._ambient.sleep(pause)

    async def call(
        self, service: str, operation: str, seconds: float, /, **parameters: Any
    ) -> dict[str, Any]:
        """The answer to one request within so many seconds. Raises BrokerError."""
        action = f"{service}:{''.join(part.title() for part in operation.split('_'))}"
        try:
            where = f"{self.where} ({action})"
            async with Deadline(seconds, where, self._ambient.timeout):
                client = await self._connect(service)
                answer: dict[str, Any] = await getattr(client, operation)(**parameters)
                return answer
        except ClientError as error:
            raise self._explain(error, action) from error
        except ResponseParserError as error:
            raise Busy(f"{self.where} answers {action} with what is no answer of AWS") from error
        except FAILURES as error:
            raise explain(error, self.where, action, "system.broker") from error

    async def _connect(self, service: str) -> Any:
        return await self._clients.get(service)

    def _explain(self, error: ClientError, action: str) -> BrokerRefused | BrokerUnavailable:
        code, text, status = answered(error)
        if code in _BUSY or status >= 500 or status == 429:
            return Busy(f"{self.where} is busy ({action}: {code})")
        if code in _FORBIDDEN:
            return BrokerRefused(
                f"{self.where} forbids {action}: allow that action in the IAM policy of the "
                "credentials in use"
            )
        if code in _CREDENTIALS:
            return BrokerRefused(
                f"{self.where} does not accept the credentials ({action}: {code}): renew them, "
                "and set the clock right if it is off by minutes"
            )
        if code in _MISSING or code.endswith(".NonExistentQueue"):
            return Missing(f"{self.where}: {action}: {text}")
        if code in _DIFFERENT or "already exists with different" in text:
            return Different(f"{self.where}: {action}: {text}")
        return BrokerRefused(f"{self.where}: {action}: {code}: {text}")
