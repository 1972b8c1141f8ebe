"""A real node: containerd, kubelet and kube-proxy, with a network in which pods have addresses."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from archives import Image, archive, layer
from control_plane import ControlPlane
from world import GROUP, NODE, Processes, run, until

PODS = "10.88.0.0/16"
DNS = NODE
"""The node answers for the names of services; see `names`."""
PAUSE = "localhost/deploy-test/pause:1"

_CONTAINERD = """version = 2
root = "{work}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Below zero a container's score is the machine's to give, and this may be no machine of its own.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{work}/cni"
    conf_dir = "{work}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
"""

_CNI = """#!/bin/sh
# Gives a pod an address and a route, and nothing else: pods and node reach each other by routing.
set -eu
if [ "${{0##*/}}" = loopback ]; then
  [ "$CNI_COMMAND" != ADD ] || printf '{{"cniVersion":"%s","ips":[]}}' 0.3.1
  exit 0
fi
name=v$(printf %s "$CNI_CONTAINERID" | cut -c1-11)
case $CNI_COMMAND in
  ADD)
    exec 9>"{work}/cni/lock"
    flock 9
    last=$(($(cat "{work}/cni/last" 2>/dev/null || echo 255) + 1))
    echo "$last" >"{work}/cni/last"
    address=10.88.$((last / 256)).$((last % 256))
    flock -u 9
    enter="nsenter --net=$CNI_NETNS"
    $enter ip link add "$CNI_IFNAME" type veth peer name "$name" netns 1
    ip link set "$name" up
    $enter ip link set lo up
    $enter ip address add "$address/32" dev "$CNI_IFNAME"
    $enter ip link set "$CNI_IFNAME" up
    $enter ip route add {node}/32 dev "$CNI_IFNAME"
    $enter ip route add default via {node} dev "$CNI_IFNAME" onlink
    ip route add "$address/32" dev "$name"
    printf '{{"cniVersion":"0.4.0","dns":{{}},"ips":'
    printf '[{{"version":"4","address":"%s/32"}}]}}' "$address"
    ;;
  DEL) ip link delete "$name" 2>/dev/null || true ;;
  VERSION) printf '{{"cniVersion":"0.4.0","supportedVersions":["0.4.0"]}}' ;;
esac
"""


class Node:
    """One node, Ready, on which the scheduler places what it is given."""

    def __init__(
        self, work: Path, binaries: Path, debian: Path, plane: ControlPlane, processes: Processes
    ) -> None:
        self._work = work / "node"
        self._binaries = binaries
        self._debian = debian
        self._plane = plane
        self._processes = processes

    def start(self) -> None:
        """Start it, and wait until it is Ready."""
        self._work.mkdir()
        self._write_network()
        self._start_containerd()
        self._start_kubelet()
        self._start_proxy()
        until("the node is Ready", self._ready, 120, self._processes)

    def load(self, image: Path) -> None:
        """Give the node an image, from an archive of the OCI."""
        run([self._tool("ctr"), *self._socket(), "-n", "k8s.io", "images", "import", image])

    def _start_containerd(self) -> None:
        config = self._work / "containerd.toml"
        config.write_text(
            _CONTAINERD.format(work=self._work, pause=PAUSE, runc=self._tool("runc", "usr/sbin"))
        )
        tools = (
            f"{self._debian}/usr/bin:{self._debian}/usr/sbin:{os.environ['PATH']}:/usr/sbin:/sbin"
        )
        self._processes.start(
            "containerd",
            [self._tool("containerd"), "--config", config],
            environment={"PATH": tools},
        )
        ask = [self._tool("ctr"), *self._socket(), "version"]
        until("containerd answers", lambda: run(ask), 60, self._processes)
        busybox = layer({"bin/busybox": (self._debian / "bin" / "busybox").read_bytes()})
        pause = Image([busybox], entrypoint=["/bin/busybox", "sleep", "2147483647"])
        self.load(archive(self._work / "pause.tar", PAUSE, pause))

    def _start_kubelet(self) -> None:
        certificate, key = self._plane.authority.issue("kubelet", "node", NODE)
        resolver = self._work / "resolv.conf"
        resolver.write_text("")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE,
            "authentication": {
                "anonymous": {"enabled": False},
                "x509": {"clientCAFile": str(self._plane.authority.certificate)},
            },
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolver),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            # Machines of CI have control groups of version 1, or no say in those that they have.
            "failCgroupV1": False,
            "cgroupsPerQOS": False,
            "cgroupRoot": f"/{GROUP}",
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "evictionHard": {"memory.available": "64Mi"},
            "imageMinimumGCAge": "24h",
            "podLogsDir": str(self._work / "logs"),
            "volumePluginDir": str(self._work / "plugins"),
            "syncFrequency": "2s",
            "registerWithTaints": [],
        }
        path = self._work / "kubelet.json"
        path.write_text(json.dumps(config))
        self._processes.start(
            "kubelet",
            [
                self._binaries / "kubelet",
                f"--config={path}",
                f"--kubeconfig={self._plane.access('system:node:node')}",
                "--hostname-override=node",
                f"--node-ip={NODE}",
                f"--root-dir={self._work}/kubelet",
                f"--cert-dir={self._work}/kubelet-certificates",
            ],
        )

    def _start_proxy(self) -> None:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": PODS,
            "hostnameOverride": "node",
            "clientConnection": {"kubeconfig": str(self._plane.access("system:kube-proxy"))},
            "conntrack": {
                "maxPerCore": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "nftables": {"minSyncPeriod": "100ms"},
        }
        path = self._work / "kube-proxy.json"
        path.write_text(json.dumps(config))
        self._processes.start(
            "kube-proxy",
            [self._binaries / "kube-proxy", f"--config={path}"],
            environment={"PATH": f"{self._debian}/usr/sbin:{os.environ['PATH']}:/usr/sbin:/sbin"},
        )

    def _write_network(self) -> None:
        folder = self._work / "cni"
        folder.mkdir()
        script = folder / "routed"
        script.write_text(_CNI.format(work=self._work, node=NODE))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        (folder / "loopback").symlink_to(script)  # containerd asks for this one itself
        named = {"cniVersion": "0.4.0", "name": "routed", "plugins": [{"type": "routed"}]}
        (folder / "10-routed.conflist").write_text(json.dumps(named))

    def _ready(self) -> bool:
        conditions = self._plane.get("node", "node")["status"]["conditions"]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _tool(self, name: str, folder: str = "usr/bin") -> Path:
        path = self._debian / folder / name
        return path if path.exists() else self._debian / "usr" / "sbin" / name

    def _socket(self) -> list[str]:
        return ["--address", "/run/containerd/containerd.sock"]
