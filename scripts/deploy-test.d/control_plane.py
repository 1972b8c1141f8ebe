"""Kubernetes' control plane: etcd, API server, controller manager and scheduler, on loopback."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from world import NODE, SERVICES, Failed, Processes, run, until

PORT = 6443
USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "system:kube-proxy": "",
    "system:node:node": "system:nodes",
    "system:serviceaccount:keda:keda-operator": "",
}
"""Who speaks to the API server, and the group that gives them more than their name does."""


class Kubectl(Protocol):
    """How `ControlPlane.kubectl` is called."""

    def __call__(self, *arguments: str, text: str | None = None) -> str: ...


class ControlPlane:
    """A real API server and its controllers, which schedule onto whatever node there is."""

    def __init__(self, work: Path, binaries: Path, debian: Path, processes: Processes) -> None:
        self._work = work / "control-plane"
        self._binaries = binaries
        self._debian = debian
        self._processes = processes
        self._tokens = {user: secrets.token_hex(16) for user in USERS}
        self.authority = Authority(self._work / "certificates")

    def start(self) -> None:
        """Start everything, and wait until it answers."""
        self._work.mkdir()
        self.authority.make()
        for user in USERS:
            self._write_access(user)
        self._start_etcd()
        self._start_api_server()
        until("the API server is ready", self._ready, 120, self._processes)
        for name, user in (
            ("kube-controller-manager", "system:kube-controller-manager"),
            ("kube-scheduler", "system:kube-scheduler"),
        ):
            command = [
                self._binaries / name,
                f"--kubeconfig={self.access(user)}",
                "--leader-elect=false",
            ]
            command += [
                f"--{mode}-kubeconfig={self.access(user)}"
                for mode in ("authentication", "authorization")
            ]
            if name == "kube-controller-manager":
                command += [
                    f"--service-account-private-key-file={self._work}/accounts.key",
                    f"--root-ca-file={self.authority.certificate}",
                    "--use-service-account-credentials",
                    "--horizontal-pod-autoscaler-sync-period=5s",
                    "--node-monitor-grace-period=120s",
                ]
            self._processes.start(name, command)
        until("namespaces have their account", self._accounts, 60, self._processes)

    def access(self, user: str) -> Path:
        """Return the kubeconfig of a user."""
        return self._work / f"{user.replace(':', '-')}.kubeconfig"

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl as the administrator; raises Failed with what it says."""
        command = [self._binaries / "kubectl", f"--kubeconfig={self.access('admin')}", *arguments]
        return run(command, text, KUBECACHEDIR=str(self._work / "cache"), HOME=str(self._work))

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return what kubectl gets, as JSON says it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Apply objects, as the server checks them."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "-f", "-", text=json.dumps(listed))

    def _start_etcd(self) -> None:
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self._processes.start(
            "etcd",
            [
                *(self._debian / "usr" / "bin" / "etcd", "--data-dir", self._work / "etcd"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"default={peer}"),
            ],
        )

    def _start_api_server(self) -> None:
        run(["openssl", "genrsa", "-out", self._work / "accounts.key", "2048"])
        tokens = self._work / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(
            "".join(
                f'{self._tokens[user]},{user},{user},"{group}"\n' for user, group in USERS.items()
            )
        )
        certificate, key = self.authority.issue("kube-apiserver", "kubernetes", "127.0.0.1", NODE)
        aggregator, aggregator_key = self.authority.issue("aggregator")
        kubelet, kubelet_key = self.authority.issue("kubelet-client", group="system:masters")
        self._processes.start(
            "kube-apiserver",
            [
                self._binaries / "kube-apiserver",
                "--etcd-servers=http://127.0.0.1:2379",
                f"--secure-port={PORT}",
                f"--advertise-address={NODE}",
                f"--service-cluster-ip-range={SERVICES}",
                f"--tls-cert-file={certificate}",
                f"--tls-private-key-file={key}",
                f"--client-ca-file={self.authority.certificate}",
                f"--token-auth-file={tokens}",
                "--authorization-mode=Node,RBAC",
                f"--service-account-key-file={self._work}/accounts.key",
                f"--service-account-signing-key-file={self._work}/accounts.key",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--kubelet-client-certificate={kubelet}",
                f"--kubelet-client-key={kubelet_key}",
                f"--requestheader-client-ca-file={self.authority.certificate}",
                "--requestheader-allowed-names=aggregator",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-username-headers=X-Remote-User",
                f"--proxy-client-cert-file={aggregator}",
                f"--proxy-client-key-file={aggregator_key}",
                "--enable-aggregator-routing=true",
                "--allow-privileged=false",
            ],
        )

    def _ready(self) -> bool:
        return self.kubectl("get", "--raw", "/readyz") == "ok"

    def _accounts(self) -> bool:
        return bool(self.get("serviceaccount", "default", "-n", "default"))

    def _write_access(self, user: str) -> None:
        path = self.access(user)
        path.touch(mode=0o600)
        cluster = {
            "server": f"https://127.0.0.1:{PORT}",
            "certificate-authority": str(self.authority.certificate),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self._tokens[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))


class Authority:
    """Makes the certificates of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "ca.crt"
        self.key = folder / "ca.key"

    def make(self) -> None:
        """Make the authority itself."""
        self._folder.mkdir(mode=0o700)
        run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=deploy-test", "-keyout", self.key, "-out", self.certificate),
            ]
        )

    def issue(self, name: str, *hosts: str, group: str = "") -> tuple[Path, Path]:
        """Return a new certificate for both ends of a connection, and its key."""
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        subject = f"/O={group}/CN={name}" if group else f"/CN={name}"
        kinds = [("IP" if host[0].isdigit() else "DNS", host) for host in hosts]
        names = ",".join(f"{kind}:{host}" for kind, host in kinds) or f"DNS:{name}"
        request = [
            "openssl",
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            subject,
            "-keyout",
            key,
        ]
        signing = ["openssl", "x509", "-req", "-CA", self.certificate, "-CAkey", self.key]
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        asked = run(request)
        run(
            [
                *signing,
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                extensions,
                "-out",
                certificate,
            ],
            asked,
        )
        return certificate, key


def refusal(kubectl: Kubectl, *arguments: str, text: str | None = None) -> str:
    """Return what kubectl refuses with; raises Failed if it does not refuse."""
    try:
        kubectl(*arguments, text=text)
    except Failed as said:
        return str(said)
    raise Failed(f"kubectl {' '.join(arguments)} was not refused")
