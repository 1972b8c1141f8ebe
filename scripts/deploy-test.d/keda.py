"""KEDA's operator and metrics adapter against the API server, with KEDA's own roles."""

from __future__ import annotations

import base64
from pathlib import Path

from control_plane import ControlPlane
from world import NODE, Processes, until

ACCOUNT = "system:serviceaccount:keda:keda-operator"
_ADAPTER, _METRICS = 7443, 9666
_SERVICE = "keda-metrics-apiserver"
_MANIFESTS = (
    "general/namespace.yaml",
    "service_account/service_account.yaml",
    *("rbac/role.yaml", "rbac/role_binding.yaml"),
    *("metrics-server/role.yaml", "metrics-server/role_binding.yaml"),
)


class Keda:
    """The autoscaler as it is installed, except that it runs beside the node and not on it."""

    def __init__(
        self, work: Path, binaries: Path, source: Path, plane: ControlPlane, processes: Processes
    ) -> None:
        self._work = work / "keda"
        self._binaries = binaries
        self._config = source / "config"
        self._plane = plane
        self._processes = processes

    def define(self) -> None:
        """Make its custom resources known, so that objects of their kinds are admitted."""
        for crd in sorted((self._config / "crd" / "bases").glob("*.yaml")):
            self._plane.kubectl("apply", "--server-side", "-f", str(crd))
        until("KEDA's kinds are served", self._known, 60, self._processes)

    def start(self) -> None:
        """Start it, and wait until the API server has its metrics from the adapter."""
        self._work.mkdir()
        for name in _MANIFESTS:
            self._plane.kubectl("apply", "--server-side", "-f", str(self._config / name))
        self._register()
        self._issue()
        environment = {
            "KUBECONFIG": str(self._plane.access(ACCOUNT)),
            "POD_NAMESPACE": "keda",
            "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda",
            "WATCH_NAMESPACE": "",
        }
        self._processes.start(
            "keda-operator",
            [
                self._binaries / "keda-operator",
                f"--cert-dir={self._work}",
                "--zap-log-level=info",
                "--metrics-bind-address=127.0.0.1:7080",
                "--health-probe-bind-address=127.0.0.1:7081",
                f"--metrics-service-bind-address=127.0.0.1:{_METRICS}",
            ],
            environment=environment,
        )
        access = self._plane.access(ACCOUNT)
        self._processes.start(
            "keda-adapter",
            [
                self._binaries / "keda-adapter",
                f"--secure-port={_ADAPTER}",
                "--port=7082",
                f"--cert-dir={self._work}",
                f"--client-ca-file={self._work}/ca.crt",
                f"--tls-cert-file={self._work}/tls.crt",
                f"--tls-private-key-file={self._work}/tls.key",
                f"--metrics-service-address=127.0.0.1:{_METRICS}",
                "--metrics-service-grpc-authority=keda-operator.keda.svc",
                f"--authentication-kubeconfig={access}",
                f"--authorization-kubeconfig={access}",
                f"--lister-kubeconfig={access}",
            ],
            environment=environment,
        )
        until("the API server serves external metrics", self._served, 90, self._processes)

    def _issue(self) -> None:
        hosts = [f"{_SERVICE}.keda.svc", "keda-operator.keda.svc"]
        certificate, key = self._plane.authority.issue("keda", *hosts)
        (self._work / "tls.crt").write_bytes(certificate.read_bytes())
        (self._work / "tls.key").write_bytes(key.read_bytes())
        (self._work / "ca.crt").write_bytes(self._plane.authority.certificate.read_bytes())

    def _register(self) -> None:
        authority = base64.b64encode(self._plane.authority.certificate.read_bytes()).decode()
        meta = {"name": _SERVICE, "namespace": "keda"}
        version = {"group": "external.metrics.k8s.io", "version": "v1beta1"}
        self._plane.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": meta,
                "spec": {"ports": [{"name": "https", "port": 443, "targetPort": _ADAPTER}]},
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": meta | {"labels": {"kubernetes.io/service-name": _SERVICE}},
                "addressType": "IPv4",
                "ports": [{"name": "https", "port": _ADAPTER, "protocol": "TCP"}],
                "endpoints": [{"addresses": [NODE]}],
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
                "spec": {
                    **version,
                    "service": meta,
                    "caBundle": authority,
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                },
            },
        )

    def _known(self) -> bool:
        self._plane.kubectl("get", "scaledobjects,triggerauthentications", "-A")
        return True

    def _served(self) -> bool:
        return "external.metrics" in self._plane.kubectl(
            "get", "--raw", "/apis/external.metrics.k8s.io/v1beta1"
        )
