"""What keeps a link to whichever server of the cluster answers: a lost one is made again."""

from __future__ import annotations

import asyncio
import ssl

from oyez.ambient import Ambient
from oyez.brokers.kit.calls import Deadline, Pauses
from oyez.brokers.rabbitmq import amqp
from oyez.brokers.rabbitmq.amqp import AmqpError, Link
from oyez.endpoint import Endpoint, mistrust
from oyez.errors import BrokerError, BrokerRefused, BrokerUnavailable


class Connection:
    """One link, shared by all who call; they connect when it is not there."""

    def __init__(
        self,
        endpoint: Endpoint,
        ambient: Ambient,
        *,
        tls: ssl.SSLContext | None,
        deadline: float,
        name: str,
    ) -> None:
        self._endpoint = endpoint
        self._ambient = ambient
        self._tls = tls
        self._deadline = deadline
        self._name = name
        self._connecting: asyncio.Task[Link] | None = None
        self._link: Link | None = None
        self._pauses = Pauses(ambient)
        self._retry = 0.0
        self._error: BrokerError | None = None
        self._turn = 0
        self.closed = False
        """Nothing connects any more until `reopen`."""

    @property
    def current(self) -> Link | None:
        """The link, if there is one now."""
        link = self._link
        return link if link is not None and link.lost is None else None

    @property
    def place(self) -> str:
        """The servers, for people."""
        hosts = ", ".join(f"{host}:{port}" for host, port in self._endpoint.hosts)
        return f"RabbitMQ at {hosts}"

    async def link(self) -> Link:
        """The link. Raises BrokerUnavailable, BrokerRefused.

        After a failure it raises the same again, without trying, until it is time to.
        """
        while self.current is None:
            if self.closed:
                raise BrokerUnavailable(f"{self.place}: the broker was closed")
            if self._connecting is None:
                if self._error is not None and self._ambient.monotonic() < self._retry:
                    raise self._error
                self._connecting = asyncio.create_task(self._connect(), name=f"amqp {self._name}")
            task = self._connecting
            await asyncio.wait([task])
            if self._connecting is task:
                self._connecting = None
            if task.cancelled():
                raise BrokerUnavailable(f"{self.place}: the broker was closed")
            self._link = task.result()
        assert self._link is not None
        return self._link

    def reopen(self) -> None:
        """Connect again when asked to, at once."""
        self.closed = False
        self._error = None

    async def close(self) -> None:
        """Let go."""
        self.closed = True
        task, self._connecting = self._connecting, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                await task.result().close()
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def error(self, error: AmqpError) -> BrokerError:
        """What the adapter raises for an AMQP error."""
        place = self.place
        vhost = self._endpoint.path or "/"
        user = self._endpoint.user or "guest"
        if told := mistrust(error):
            return BrokerRefused(f"{place}: {told}")
        if error.starting:
            return BrokerUnavailable(f"{place}: {error}")
        if error.code == amqp.ACCESS_REFUSED:
            return BrokerRefused(
                f"{place}: {error}: check user and password, and what the user may do: "
                f"rabbitmqctl set_permissions -p '{vhost}' '{user}' '.*' '.*' '.*'"
            )
        if error.code == amqp.NOT_ALLOWED and "vhost" in str(error):
            return BrokerRefused(
                f"{place}: {error}: rabbitmqctl add_vhost '{vhost}', and give {user} permission"
            )
        if error.code in (amqp.PRECONDITION_FAILED, amqp.NOT_ALLOWED):
            return BrokerRefused(f"{place}: {error}")
        return BrokerUnavailable(f"{place}: {error}")

    async def _connect(self) -> Link:
        endpoint = self._endpoint
        found: BrokerError = BrokerUnavailable(f"{self.place} is out of reach")
        hosts = endpoint.hosts[self._turn :] + endpoint.hosts[: self._turn]
        for host, port in hosts:
            try:
                async with Deadline(self._deadline / len(hosts), f"RabbitMQ at {host}:{port}"):
                    link = await amqp.connect(
                        host,
                        port,
                        tls=self._tls,
                        user="guest" if endpoint.user is None else endpoint.user,
                        password="guest" if endpoint.password is None else endpoint.password,
                        vhost=endpoint.path or "/",
                        name=self._name,
                    )
            except BrokerUnavailable as error:
                found = error
            except AmqpError as error:
                found = self.error(error)
                if isinstance(found, BrokerRefused):
                    break
            else:
                self._pauses.failures, self._error = 0, None
                return link
            self._turn = (self._turn + 1) % len(endpoint.hosts)
        self._retry = self._ambient.monotonic() + self._pauses.next()
        self._error = found
        raise found
