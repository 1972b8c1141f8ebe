"""The names of services, for pods: as much of DNS as a resolver needs to find an address."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping

DOMAIN = "svc.cluster.local"
_A, _IN = 1, 1
_RESPONSE = 0x8580  # an answer, authoritative, recursion available
_NO_SUCH_NAME = 3

Lookup = Callable[[str], str | None]


def answer(query: bytes, lookup: Lookup) -> bytes | None:
    """Return the answer to a query with one question; None to what is none.

    A name that is known has one IPv4 address and nothing else.
    """
    if len(query) < 12 or struct.unpack("!H", query[4:6])[0] != 1:
        return None
    labels, at = [], 12
    while at < len(query) and query[at]:
        length = query[at]
        if length > 63:
            return None
        labels.append(query[at + 1 : at + 1 + length])
        at += 1 + length
    question = query[12 : at + 5]
    if len(question) != at - 7:
        return None
    (kind,) = struct.unpack("!H", query[at + 1 : at + 3])
    address = lookup(b".".join(labels).decode("ascii", "replace").lower())
    found = socket.inet_aton(address) if address is not None and kind == _A else None
    code = _RESPONSE | (_NO_SUCH_NAME if address is None else 0)
    head = query[:2] + struct.pack("!HHHHH", code, 1, 0 if found is None else 1, 0, 0)
    if found is None:
        return head + question
    return head + question + struct.pack("!HHHIH", 0xC00C, _A, _IN, 1, 4) + found


def table(services: list[Mapping[str, object]], outside: Mapping[str, str]) -> dict[str, str]:
    """Return the address of each name: of services in the cluster, and of what is outside of it."""
    found = dict(outside)
    for service in services:
        meta, spec = service["metadata"], service["spec"]
        address = spec.get("clusterIP")  # type: ignore[attr-defined]
        if address not in (None, "None"):
            place = f"{meta['name']}.{meta['namespace']}"  # type: ignore[index]
            found[f"{place}.{DOMAIN}"] = found[f"{place}.svc"] = found[place] = address
    return found


class Names:
    """Answers on UDP for as long as the world lasts."""

    def __init__(self, address: str, known: Callable[[], Mapping[str, str]]) -> None:
        self._known = known
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._names: Mapping[str, str] = {}

    def start(self) -> None:
        """Answer from now on."""
        self.refresh()
        threading.Thread(target=self._serve, daemon=True).start()

    def refresh(self) -> None:
        """Look again which names there are."""
        self._names = self._known()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            told = answer(query, self._names.get)
            if told is not None:
                self._socket.sendto(told, sender)
