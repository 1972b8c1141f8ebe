"""Where a client is: the address of its connection, or what the proxies before the gateway say."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

from oyez.config import Network


def behind(connected: str, forwarded: Iterable[bytes], trusted: Sequence[Network]) -> str:
    """Return the address of the client behind trusted proxies.

    ``connected`` is who has connected, ``forwarded`` the values of ``X-Forwarded-For``. Each proxy
    adds there, at the right, whom it was asked by; so the list is read from the right for as long
    as it was one of the trusted that wrote. What stands left of that a client may have made up.
    """
    hops = b",".join(forwarded).split(b",")
    client = connected
    while hops and _is_one(client, trusted):
        named = _parsed(hops.pop().strip().decode("latin-1"))
        if named is None:
            break
        client = f"{named}"
    return client


@lru_cache(maxsize=4096)
def network(client: str) -> str:
    """Return what the addresses of one subscriber have in common: an IPv4 address, an IPv6 /64.

    No principal has such a name.
    """
    address = _parsed(client)
    if address is None:
        return f"@{client}"
    if isinstance(address, ipaddress.IPv4Address):
        return f"@{address}"
    return f"@{ipaddress.ip_network((address.packed, 64), strict=False)}"


def _is_one(client: str, trusted: Sequence[Network]) -> bool:
    address = _parsed(client)
    return address is not None and any(address in each for each in trusted)


@lru_cache(maxsize=4096)
def _parsed(client: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address; None for what is none. A socket for both families maps those of IPv4."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
