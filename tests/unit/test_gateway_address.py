"""Where a client is, as the proxies before the gateway say, and whom of them it believes."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from test_gateway import Upstream, listening, serving, settings

from oyez.gateway.address import behind, network


@pytest.mark.parametrize(
    ("client", "name"),
    [
        ("192.0.2.7", "@192.0.2.7"),
        ("::ffff:192.0.2.7", "@192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "@2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "@2001:db8:1:2::/64"),
        ("fe80::1%eth0", "@fe80::/64"),
        ("unknown", "@unknown"),
    ],
)
def test_addresses_of_one_subscriber_are_one(client: str, name: str) -> None:
    assert network(client) == name


TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("connected", "forwarded", "client"),
    [
        ("192.0.2.7", [b"6.6.6.6"], "192.0.2.7"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", [b"192.0.2.7"], "192.0.2.7"),
        ("::ffff:10.1.1.1", [b"2001:db8::7"], "2001:db8::7"),
        ("10.1.1.1", [b"6.6.6.6, 192.0.2.7"], "192.0.2.7"),
        ("10.1.1.1", [b"6.6.6.6", b"192.0.2.7 ,10.2.2.2"], "192.0.2.7"),
        ("10.1.1.1", [b"10.9.9.9, 192.0.2.7, fd00::1, 10.2.2.2"], "192.0.2.7"),
        ("10.1.1.1", [b"10.2.2.2"], "10.2.2.2"),
        ("10.1.1.1", [b"192.0.2.7, unknown"], "10.1.1.1"),
        ("10.1.1.1", [b'192.0.2.7, "x\r\ny'], "10.1.1.1"),
        ("10.1.1.1", [b"192.0.2.7, "], "10.1.1.1"),
        ("10.1.1.1", [b'fe80::1%";host="x'], "fe80::1"),
        ("unknown", [b"192.0.2.7"], "unknown"),
    ],
)
def test_only_what_a_trusted_proxy_wrote_is_believed(
    connected: str, forwarded: list[bytes], client: str
) -> None:
    assert behind(connected, forwarded, TRUSTED) == client


@pytest.mark.parametrize(
    ("more", "client_of"),
    [("", "127.0.0.1"), ('trusted_proxies = ["127.0.0.0/8"]', "192.0.2.8")],
)
async def test_services_see_whom_the_gateway_believes(
    tmp_path: Path, more: str, client_of: str
) -> None:
    upstream = Upstream()
    async with listening(upstream) as port, serving(settings(tmp_path, port, more)) as client:
        await client.get("/open", headers={"x-forwarded-for": "6.6.6.6, 192.0.2.8"})
    seen = upstream.seen[-1]["map"]
    assert seen[b"x-forwarded-for"].decode() == client_of
    assert seen[b"forwarded"].decode().startswith(f'for="{client_of}";')
