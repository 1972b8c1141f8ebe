"""Which endpoints may be posted to: schemes, ports and addresses.

Whoever may subscribe chooses where this service sends requests to. So that nobody reaches what only
this machine can reach, addresses that are not public are refused, unless they are allowed. The
address is judged where the connection is made (see `oyez.webhooks.client`): a name says nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

import msgspec

from oyez.errors import DeclarationError, InvalidEvent

MAX_URL = 2_048
"""Characters of a URL."""

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]{{2,45}}\]|{_LABEL}(?:\.{_LABEL})*)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[A-Za-z0-9._~!$&'()*+,;=:@/%-]*)?"
    r"(?P<query>\?[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*)?"
)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

# IANA's registries of special-purpose addresses; `ipaddress` knows them as of its Python's release.
_CLOSED_4 = [
    ipaddress.ip_network(each)
    for each in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32",
        "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
        "240.0.0.0/4",
    )
]  # fmt: skip
"""168.63.129.16 is Azure's own; the metadata of other clouds is in the networks besides."""
_OPEN_6 = ipaddress.ip_network("2000::/3")
"""All that is public. IPv4 in IPv6 (``::ffff:0:0/96``, ``64:ff9b::/96``) is not."""
_CLOSED_6 = [
    ipaddress.ip_network(each) for each in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A URL in its parts, as they are used for a request."""

    scheme: str
    host: str
    """A name, or an address; one of IPv6 without its brackets."""
    port: int
    path: str
    """With the query."""

    @property
    def authority(self) -> str:
        """The header ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"https": 443, "http": 80}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"


class Reach:
    """The endpoints that may be reached."""

    def __init__(
        self,
        networks: Sequence[str] = (),
        ports: Sequence[int] = (),
        *,
        http: bool = False,
        public: bool = True,
    ) -> None:
        """Allow ``networks`` that are not public, ``ports`` besides the usual, and plain ``http``.

        Without ``public``, the networks are all that is allowed.
        Raises DeclarationError for what is no network or port.
        """
        try:
            self._allowed = [ipaddress.ip_network(each) for each in networks]
        except ValueError as error:
            raise DeclarationError(
                f'webhooks: allow: expected networks such as "10.1.0.0/16": {error}'
            ) from error
        for port in ports:
            if not 0 < port < 65_536:
                raise DeclarationError(f"webhooks: ports: expected 1 to 65535, found {port}")
        self._public = public
        self._schemes = ("https", "http") if http else ("https",)
        self._ports = {443, *((80,) if http else ()), *ports}

    def target(self, url: str) -> Target:
        """Return the parts of a URL. Raises InvalidEvent if it may not be posted to."""
        found = _URL.fullmatch(url) if len(url) <= MAX_URL else None
        if found is None:
            raise _refused(
                f"expected https://HOST/PATH without user, password and fragment, at most "
                f"{MAX_URL} characters"
            )
        scheme, host = found["scheme"], found["host"]
        if scheme not in self._schemes:
            raise _refused("expected https")
        port = int(found["port"] or {"https": 443, "http": 80}[scheme])
        if port not in self._ports:
            allowed = ", ".join(map(str, sorted(self._ports)))
            raise _refused(f"port {port} is not allowed; allowed: {allowed}")
        host = host.strip("[]")
        if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]):
            try:
                admitted = self.admits(host)
            except ValueError:
                raise _refused("expected a name or an address as the host") from None
            if not admitted:
                raise _refused("its address is not public")
        path = (found["path"] or "/") + (found["query"] or "")
        return Target(scheme=scheme, host=host, port=port, path=path)

    def admits(self, address: str) -> bool:
        """Return whether an address may be connected to. Raises ValueError for what is none."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if any(found in network for network in self._allowed):
            return True
        if not self._public:
            return False
        if isinstance(found, ipaddress.IPv4Address):
            return not any(found in network for network in _CLOSED_4)
        return found in _OPEN_6 and not any(found in network for network in _CLOSED_6)


def _refused(problem: str) -> InvalidEvent:
    return InvalidEvent("$.url", problem)
