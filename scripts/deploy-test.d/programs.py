"""The programs of a cluster: built or unpacked once, and kept in the cache for every later run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from state import State, whole

HERE = Path(__file__).resolve().parent
KUBERNETES = "1.34.4"
KEDA = "2.21.0"
DEBIAN = (
    *("etcd-server", "containerd", "runc", "libseccomp2", "busybox-static"),
    *("nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libxtables12"),
)
"""Unpacked, not installed: the machine keeps the packages, and the daemons, that it has."""

Say = Callable[[str], None]
"""Takes a line of progress."""


class Unavailable(Exception):
    """A program that could not be brought here: what was tried, and what it said."""


@dataclass(frozen=True)
class Go:
    """Programs built from a module that this folder pins with all it needs, by version and hash."""

    name: str
    version: str
    packages: Mapping[str, str]
    """The package of each program."""
    stamp: str = ""
    """Where the linker writes the version, for programs that announce it."""

    def bring(self, state: State, say: Say) -> Path:
        """Return the folder of the programs; build those that are missing. Takes minutes once."""
        with state.cached(f"{self.name}-{self.version}") as kept:
            kept.mkdir(exist_ok=True)
            for program, package in self.packages.items():
                if not (kept / program).exists():
                    say(f"building {program} {self.version}, once for all runs")
                    self._build(kept, program, package)
        return kept

    def source(self) -> Path:
        """Return the folder of the module's own files, such as its custom resources."""
        module = next(iter(self.packages.values())).partition("/cmd/")[0]
        return Path(_run(["go", "list", "-m", "-f", "{{.Dir}}", module], self._folder))

    @property
    def _folder(self) -> Path:
        return HERE / "go" / self.name

    def _build(self, kept: Path, program: str, package: str) -> None:
        major, minor, _ = self.version.split(".")
        named = {"gitVersion": f"v{self.version}", "gitMajor": major, "gitMinor": minor}
        stamps = [f"-X {self.stamp}.{key}={value}" for key, value in named.items() if self.stamp]
        # Two at a time: the linker alone takes a gigabyte, and others may be at work here too.
        command = ["go", "build", "-p", "2", "-trimpath", "-ldflags", " ".join(["-s -w", *stamps])]
        scratch = kept / f".{program}"
        _run([*command, "-o", str(scratch), package], self._folder)
        scratch.rename(kept / program)


CONTROL = Go(
    "kubernetes",
    KUBERNETES,
    {
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    },
    "k8s.io/component-base/version",
)
NODE = Go(
    CONTROL.name,
    CONTROL.version,
    {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kubelet", "kube-proxy")},
    CONTROL.stamp,
)
AUTOSCALER = Go(
    "keda",
    KEDA,
    {f"keda-{name}": f"github.com/kedacore/keda/v2/cmd/{name}" for name in ("operator", "adapter")},
)


def unpacked(state: State, say: Say) -> Path:
    """Return a folder with the files of `DEBIAN`."""
    with state.cached("deploy-test-debian") as kept:
        if not kept.exists():
            say("unpacking Debian's etcd, containerd, runc and nftables, once for all runs")
            with whole(kept) as root, tempfile.TemporaryDirectory() as scratch:
                downloads = Path(scratch)
                try:
                    _run(_APT, downloads)
                except Unavailable:
                    _run(["apt-get", "update", "-qq"], downloads)
                    _run(_APT, downloads)
                for package in sorted(downloads.glob("*.deb")):
                    _run(["dpkg-deb", "-x", str(package), str(root)], downloads)
                # The program finds the libraries that came with it, and nobody else does.
                nft = root / "usr" / "sbin" / "nft"
                nft.rename(nft.with_name("nft.program"))
                nft.write_text(_NFT)
                nft.chmod(0o755)
    return kept


_APT = ["apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", *DEBIAN]
_NFT = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
libraries="$here/../lib/x86_64-linux-gnu:$here/../../lib/x86_64-linux-gnu"
LD_LIBRARY_PATH="$libraries" exec "$here/nft.program" "$@"
"""


def _run(command: Sequence[str], folder: Path) -> str:
    ran = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).strip()[-2000:]
        raise Unavailable(f"{' '.join(command[:3])} … failed:\n{said}")
    return ran.stdout.strip()


def missing_here() -> list[str]:
    """Return what this machine lacks for a cluster, each with its remedy; empty if nothing."""
    wants = {
        "go": "go: it builds Kubernetes; Debian's golang is too old",
        "apt-get": "apt-get: containerd, runc and etcd are Debian's",
        "openssl": "openssl: it makes the certificates; Debian's openssl",
        "unshare": "unshare: Debian's util-linux",
        "ip": "ip: Debian's iproute2",
        "buildah": "buildah: it builds the images; Debian's buildah",
        "mmdebstrap": "mmdebstrap: it makes their base; Debian's mmdebstrap",
    }
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacks = [said for name, said in wants.items() if shutil.which(name, path=path) is None]
    if os.geteuid() != 0:
        lacks.insert(0, "root: a node mounts, and makes namespaces")
    elif subprocess.run([*("unshare", "--mount", "--net", "--pid", "--fork", "true")]).returncode:
        lacks.append("namespaces: this kernel or container refuses `unshare`")
    return lacks


def should_run(lacks: Sequence[str]) -> bool:
    """Return whether a machine that lacks this is one on which nothing may be lacking.

    A machine with Go, where we are root, can have everything else.
    """
    return os.geteuid() == 0 and shutil.which("go") is not None and bool(lacks)
