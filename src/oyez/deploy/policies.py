"""Network policies: nothing may connect to anything, except who has to by the plan."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from oyez.deploy.plan import ADMIN, Part, Peer, Plan

KEDA, MONITORING, INGRESS = "keda", "monitoring", "ingress-nginx"
"""Namespaces in which others of the cluster run, by their usual names; overlays change them."""

_PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"]
_NAMESPACE = "kubernetes.io/metadata.name"

Value = Mapping[str, Any]


def everywhere(labels: Value) -> Value:
    """Return the policy of a namespace: no connection in or out, but questions to its DNS."""
    dns = {
        "namespaceSelector": _named("kube-system"),
        "podSelector": _labelled("k8s-app", "kube-dns"),
    }
    ports = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    spec = {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": [dns], "ports": ports}],
    }
    return _policy("default", labels, spec)


def policy(plan: Plan, part: Part, labels: Value) -> Value:
    """Return the policy of a part's pods, with these labels."""
    ingress: list[Value] = []
    callers = [{"podSelector": pods(name)} for name in plan.callers(part.name)]
    if part.kind == "gateway":
        callers.append({"namespaceSelector": _named(INGRESS)})
    if part.kind == "scale":
        callers.append({"namespaceSelector": _named(KEDA)})
    if part.port is not None and callers:
        ingress.append({"from": callers, "ports": _ports(part.port)})
    askers: list[Value] = []
    if part.kind == "service":
        askers += [{"podSelector": pods(each.name)} for each in plan.parts if each.asks]
    if part.admin and plan.monitor:
        askers.append({"namespaceSelector": _named(MONITORING)})
    if askers:
        ingress.append({"from": askers, "ports": _ports(ADMIN)})
    egress: list[Value] = []
    for name in part.parts:
        port = plan.part(name).port
        if port is not None:
            egress.append({"to": [{"podSelector": pods(name)}], "ports": _ports(port)})
    if part.asks:
        services = {"matchLabels": {"app.kubernetes.io/component": "service"}}
        egress.append({"to": [{"podSelector": services}], "ports": _ports(ADMIN)})
    egress += [{"to": [_place(each)], "ports": _ports(each.port)} for each in part.peers]
    spec = {
        "podSelector": pods(part.name),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    return _policy(part.name, labels, spec)


def pods(name: str) -> Value:
    """Return the selector of a part's pods."""
    return _labelled("app.kubernetes.io/name", name)


def _place(peer: Peer) -> Value:
    """Return where a host is.

    ``NAME`` are pods of this namespace with that name, ``NAME.NAMESPACE`` and what ends in ``.svc``
    the pods of a namespace, anything else is outside of the cluster.
    """
    if not peer.host:
        return {"ipBlock": {"cidr": "0.0.0.0/0", "except": _PRIVATE}}
    try:
        return {"ipBlock": {"cidr": f"{ipaddress.ip_network(peer.host)}"}}
    except ValueError:
        pass
    name, *rest = peer.host.lower().rstrip(".").split(".")
    if not rest:
        return {"podSelector": pods(name)}
    if len(rest) == 1 or rest[1] == "svc":
        return {"namespaceSelector": _named(rest[0])}
    return {"ipBlock": {"cidr": "0.0.0.0/0"}}


def _ports(port: int) -> Sequence[Value]:
    return [{"protocol": "TCP", "port": port}]


def _named(namespace: str) -> Value:
    return _labelled(_NAMESPACE, namespace)


def _labelled(label: str, value: str) -> Value:
    return {"matchLabels": {label: value}}


def _policy(name: str, labels: Value, spec: Value) -> Value:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }
