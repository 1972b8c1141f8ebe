"""A world apart for one run: processes, mounts and network of its own, which end with it.

Whatever ends the run, be it Ctrl-C, an error or a kill -9, the kernel ends every process in its
world, and takes the mounts and the network with it. Left are only files below the run's folder, and
empty control groups, which `swept` removes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

NODE = "10.88.0.1"
"""The address of the node, on the loopback device of a network that nobody else has."""
SERVICES = "10.96.0.0/16"
"""The addresses of Services."""
GROUP = "oyez-deploy-test"
"""The control group of everything that the node runs."""
PODS_GROUP = "k8s.io"
"""The control group in which containerd puts pods that a kubelet names no group for."""
_GROUPS = Path("/sys/fs/cgroup")
_SHARES, _WEIGHT = 1024, 100
"""What a group has that nobody gave another, by the two versions of groups."""
_INSIDE = "DEPLOY_TEST_INSIDE"
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_first = 0
"""The first process of this world, where another goes on for it."""


class Failed(Exception):
    """What was to happen did not, and what was seen instead."""


def inside() -> bool:
    """Return whether this process is the first one of a world, or went on for it; see `reaped`."""
    return _INSIDE in os.environ and 1 in (os.getpid(), _first)


def reaped() -> None:
    """Go on in a child of the first process, which is left to wait for those whom nobody else does.

    Without, what a killed server leaves behind stays as a zombie until the world ends: thousands.
    """
    global _first
    child = os.fork()
    if not child:
        _first = os.getppid()
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it too, and ends in order
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def enter(command: Sequence[str], **environment: str) -> int:
    """Run a command as the first process of a new world; its exit code."""
    world = subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            *command,
        ],
        env=os.environ | environment | {_INSIDE: "1"},
        preexec_fn=_die_with_parent,
    )
    try:
        return world.wait()
    except KeyboardInterrupt:
        # The world has had the same Ctrl-C, and says what it has seen so far.
        try:
            world.wait(20)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            world.kill()
            world.wait()
        return 130


def settle_in() -> None:
    """Prepare the world: loopback, the node's address, and system folders of its own."""
    run(["mount", "--make-rprivate", "/"])
    run(["mount", "-t", "tmpfs", "tmpfs", "/run"])
    # Volumes that the kubelet mounts have to be seen by containerd, and by nobody outside.
    run(["mount", "--make-rshared", "/"])
    resolver = Path("/run/resolv.conf")
    resolver.write_text(f"nameserver {NODE}\n")
    run(["mount", "--bind", resolver, "/etc/resolv.conf"])
    run(["ip", "link", "set", "lo", "up"])
    run(["ip", "address", "add", f"{NODE}/32", "dev", "lo"])
    # Without a route nothing would be sent, and kube-proxy could not send it elsewhere.
    run(["ip", "route", "add", SERVICES, "dev", "lo", "src", NODE])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    _weigh()


def _weigh() -> None:
    """Give all pods together half of the CPU, and the other half to all that serves them.

    On a node it would be more, but here the servers are beside them, and the customers. Otherwise
    all pods weigh as much as one session of a terminal, of which the control plane and the servers
    are dozens. Where control groups are not ours to change, that stays so.
    """
    cores = os.cpu_count() or 1
    for top in (_GROUPS / "cpu", _GROUPS):
        try:
            for name in (GROUP, PODS_GROUP):
                group = top / name
                group.mkdir(exist_ok=True)
                shares = group / "cpu.shares"
                if shares.exists():
                    shares.write_text(f"{_SHARES * cores}")
                else:
                    (group / "cpu.weight").write_text(f"{_WEIGHT * cores}")
            (top / GROUP / "cgroup.procs").write_text("0")
            return
        except OSError:
            continue


def swept() -> None:
    """Remove the control groups of this run, or of one that crashed."""
    names = [GROUP]
    if not Path("/run/containerd/containerd.sock").exists():  # else they are the machine's own
        names.append(PODS_GROUP)
    for top in (found for name in names for found in _GROUPS.glob(f"**/{name}")):
        for folder in sorted(top.glob("**/"), key=lambda path: -len(path.parts)):
            try:
                folder.rmdir()
            except OSError:
                pass


class Processes:
    """The programs that a run has started, each with a log of its own."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start a program under a name; it runs until `stop` or the end of the world."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, name: str, patience: float = 10.0) -> None:
        """End a program, by force after so many seconds."""
        process = self._running.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """End everything, the newest first."""
        for name in list(self._running)[::-1]:
            self.stop(name)

    def check(self) -> None:
        """Raise Failed if one has ended that was not stopped, with the end of its log."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended ({process.returncode}):\n{self.tail(name)}")

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the end of a program's log."""
        text = (self._logs / f"{name}.log").read_text(errors="replace")
        return "\n".join(f"  | {line[:300]}" for line in text.splitlines()[-lines:])


def run(command: Sequence[str | Path], text: str | None = None, **environment: str) -> str:
    """Run a program to its end and return what it prints; raises Failed with what it says."""
    ran = subprocess.run(
        [str(part) for part in command],
        input=text,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).strip()
        raise Failed(f"{Path(command[0]).name} {' '.join(map(str, command[1:6]))}: {said[-4000:]}")
    return ran.stdout


def until(
    what: str,
    condition: Callable[[], object],
    seconds: float,
    processes: Processes | None = None,
    otherwise: Callable[[], str] = str,
) -> float:
    """Wait until something holds; the seconds that took. Raises Failed after ``seconds``."""
    begun = time.monotonic()
    last = ""
    while time.monotonic() - begun < seconds:
        if processes is not None:
            processes.check()
        try:
            if condition():
                return time.monotonic() - begun
        except (Failed, OSError) as error:
            last = str(error)
        time.sleep(0.2)
    raise Failed(
        "\n".join(filter(None, (f"not within {seconds:.0f} s: {what}", last, otherwise())))
    )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of the run's folder: two runs at once would remove each other's."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another run is at work: it holds {path}") from None
        yield


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """The run's folder, made anew; what an earlier run left is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, mode=0o755)
    yield path


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)


def again() -> list[str]:
    """Return the command line of this process."""
    return [sys.executable, *sys.argv]
