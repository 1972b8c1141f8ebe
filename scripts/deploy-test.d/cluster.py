"""The parts of a run, on one cluster that is started as far as they need it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from archives import Image, archive, layer
from control_plane import ControlPlane, refusal
from keda import Keda
from measures import changes, exactly_once, percentile, rises_once
from names import Names, table
from node import Node
from programs import AUTOSCALER, CONTROL
from projects import Deployed, documents, kinds, secret_values, spoilt
from report import Findings, Outcome
from shop import Customers, Logs, Owners, companions, settled, shown
from state import State
from world import NODE, Failed, Processes, run, until

from servers import Servers

CLOCKS, EACH = 48, 75
"""Ticks of the part that scales: more than a minute of one replica's time."""


class Cluster:
    """A control plane, a node and an autoscaler; each starts when something needs it."""

    def __init__(
        self,
        work: Path,
        state: State,
        deployed: Mapping[str, Deployed],
        say: Callable[[str], None],
        *,
        pace: float,
    ) -> None:
        """``pace`` is the orders a second that customers place."""
        self._work = work
        self._deployed = deployed
        self._say = say
        self._pace = pace
        self._binaries = state.cache / f"{CONTROL.name}-{CONTROL.version}"
        self._debian = state.cache / "deploy-test-debian"
        self._cache = state.cache
        (work / "logs").mkdir()
        self._processes = Processes(work / "logs")
        self._running: set[str] = set()
        self._accepted: list[str] = []
        """All orders of the shop that customers were told are accepted."""

    def stop(self) -> None:
        """End everything in order; the world's end would do it too."""
        self._processes.stop_all()

    # -- parts -------------------------------------------------------------------------------------

    def manifests(self) -> Outcome:
        """Let the API server check every object, and see that it does check them."""
        found = Findings()
        plane, _ = self._plane, self._keda
        dry = ["apply", "--server-side", "--dry-run=server", "--warnings-as-errors"]
        for name, deployed in self._deployed.items():
            self._namespace(deployed)
            overlay = str(deployed.overlay)
            plane.kubectl(*dry, "-k", overlay)
            made = plane.kubectl("create", "--dry-run=client", "-o", "json", "-k", overlay)
            objects = documents(made)
            counted = ", ".join(f"{count} {kind}" for kind, count in kinds(objects).items())
            found.note(f"{name}: admitted without a warning", f"{len(objects)}: {counted}")
            for what, wrong in spoilt(objects):
                said = refusal(plane.kubectl, *dry, "-f", "-", text=json.dumps(wrong))
                found.note(f"{name}: {what} is refused", said.splitlines()[0][-150:])
        return found.outcome()

    def rollout(self) -> Outcome:
        """Replace every pod of the shop while customers order."""
        found = Findings()
        self._start_shop()
        plane, shop = self._plane, self._deployed["shop"]
        names = [each for each in shop.parts if each not in ("console", "oyez-scale")]
        services = [name for name in names if name != "gateway"]
        with ExitStack() as stack:
            logs = stack.enter_context(Logs(self._work / "node" / "logs"))
            customers = stack.enter_context(self._customers())
            self._wait_for_orders(customers, 3 * self._pace)
            owners = stack.enter_context(Owners(self._servers.store(""), services))
            begun = time.monotonic()
            for name in names:
                plane.kubectl("rollout", "restart", "-n", shop.namespace, f"deployment/{name}")
                self._rolled_out([name])
            took = time.monotonic() - begun
            self._wait_for_orders(customers, len(customers.accepted) + 2 * self._pace)
        pauses = owners.handovers.all_pauses()
        found.note(
            "replaced", f"{2 * len(names)} pods of {len(names)} parts, one by one, in {took:.0f} s"
        )
        self._check_books(found, customers)
        found.hold("HTTP errors", shown(customers.errors), right=not customers.errors, expected="0")
        found.note(
            "answered in",
            f"p50 {percentile(customers.waited, 0.5) * 1000:.0f} ms, "
            f"p99 {percentile(customers.waited, 0.99) * 1000:.0f} ms",
        )
        places = owners.handovers.places
        found.hold(
            "handovers",
            f"{owners.handovers.count} of {places} partitions",
            right=owners.handovers.count >= places,
            expected="each at least once",
        )
        p99 = percentile(pauses, 0.99)
        self._keep_pauses(owners)
        worst, where = owners.handovers.worst
        found.hold(
            "pause of a partition",
            f"p50 {percentile(pauses, 0.5):.3f} s, p99 {p99:.3f} s, "
            f"worst {worst:.3f} s, of {where}",
            right=p99 <= 1.0,
            expected="p99 of 1 s at most",
        )
        fenced = logs.count('"fenced: ')
        found.hold("fenced commits", fenced, right=fenced == 0, expected="0")
        found.note("log lines of errors", logs.count('"level": "error"', '"level":"error"'))
        return found.outcome()

    def failures(self) -> Outcome:
        """Break what breaks, one after the other, while customers order."""
        found = Findings()
        self._start_shop()
        with Logs(self._work / "node" / "logs"), self._customers() as customers:
            self._wait_for_orders(customers, 2 * self._pace)
            self._delete_by_force(found)
            whole = time.monotonic()
            self._wait_for_orders(customers, len(customers.accepted) + 2 * self._pace)
            self._bad_image(found)
            self._drain(found)
        errors = customers.errors_since(whole)
        self._check_books(found, customers)
        tolerated = len(customers.errors) - len(errors)
        found.note("HTTP errors, answered on a repeat, while pods were killed", tolerated)
        found.hold("HTTP errors from then on", shown(errors), right=not errors, expected="0")
        return found.outcome()

    def scaling(self) -> Outcome:
        """Have KEDA follow what Oyez wants, from one replica to three and back."""
        found = Findings()
        deployed = self._deployed["counter"]
        self._keda.start()
        self._place(deployed)
        self._rolled_out(["counter", "oyez-scale"], deployed)
        until(
            "KEDA has made its autoscaler",
            lambda: self._plane.get("hpa", "-n", "counter")["items"],
            60,
            self._processes,
        )
        seen = _Replicas(lambda: self._plane.get("deployment", "counter", "-n", "counter"))
        with seen:
            ticks = self._tick(deployed)
            begun = time.monotonic()
            until(
                "three replicas are ready", lambda: seen.ready == 3, 150, self._processes, self._why
            )
            found.note(
                "1 to 3 replicas, all ready", f"{time.monotonic() - begun:.0f} s after the load"
            )
            wait = until(
                "every tick is counted",
                lambda: self._counted(deployed) >= len(ticks),
                200,
                self._processes,
                self._why,
            )
            found.note("the load is handled", f"{wait:.0f} s later")
            wait = until(
                "one replica is left",
                lambda: seen.ready == 1 and seen.wanted == 1,
                240,
                self._processes,
                self._why,
            )
            found.note("back to 1 replica", f"{wait:.0f} s later")
        steps = changes(seen.numbers)
        found.hold(
            "replicas wanted",
            " → ".join(map(str, steps)),
            right=rises_once(steps, 3),
            expected="up to 3, then down to 1, and no way back between",
        )
        wrong = exactly_once(self._ticks_counted(deployed), ticks)
        found.hold(
            "ticks counted",
            wrong or f"each of {len(ticks)} once",
            right=not wrong,
            expected="each once",
        )
        return found.outcome()

    # -- steps of parts ----------------------------------------------------------------------------

    def _check_books(self, found: Findings, customers: Customers) -> None:
        """See that there are the orders that were accepted and no others, and that all settle."""
        before = len(self._accepted)
        self._accepted += customers.accepted
        shop = self._deployed["shop"]
        orders, settling = settled(shop.folder, self._outside, self._accepted)
        found.hold(
            "orders accepted",
            len(customers.accepted),
            right=orders == len(self._accepted),
            expected=f"as many as there are, {orders - before}",
        )
        found.note("the books balance", f"{settling:.0f} s after the last order")

    def _keep_pauses(self, owners: Owners) -> None:
        """Write down each handover, for who asks where a pause comes from."""
        told = [
            f"{at:.3f} {pause:.3f} {' '.join(map(str, place))} {old} -> {new}\n"
            for at, pause, place, old, new in owners.handovers.seen
        ]
        (self._work / "logs" / "handovers.log").write_text("".join(told))

    def _delete_by_force(self, found: Findings) -> None:
        plane, shop = self._plane, self._deployed["shop"]
        for name in ("payments", "orders"):
            pod = self._pods(name)[0]["metadata"]["name"]
            plane.kubectl(
                "delete",
                "pod",
                pod,
                "-n",
                shop.namespace,
                "--force",
                "--grace-period=0",
                "--wait=false",
            )
            wait = until(
                f"another pod of {name} is ready",
                lambda name=name, pod=pod: self._ready_pods(name, but=pod) == 2,
                90,
                self._processes,
            )
            found.note(
                f"a pod of {name} deleted by force", f"two are ready again after {wait:.0f} s"
            )

    def _bad_image(self, found: Findings) -> None:
        plane, shop = self._plane, self._deployed["shop"]
        ends = Image(
            [layer({"bin/busybox": (self._debian / "bin" / "busybox").read_bytes()})],
            entrypoint=["/bin/busybox", "false"],
        )
        name = "localhost/shop/orders:broken"
        self._node.load(archive(self._work / "broken.tar", name, ends))
        plane.kubectl("set", "image", "-n", shop.namespace, "deployment/orders", f"orders={name}")
        until("the new pod has failed", lambda: self._restarts("orders", name), 60, self._processes)
        said = refusal(
            plane.kubectl,
            "rollout",
            "status",
            "-n",
            shop.namespace,
            "deployment/orders",
            "--timeout=10s",
        )
        ready = self._ready_pods("orders", image="localhost/shop/orders:unreleased")
        found.hold(
            "an image that does not start",
            f"the rollout stalls, {ready} old pods serve",
            right=ready == 2,
            expected="2 old pods that serve",
        )
        found.note("kubectl rollout status", said.splitlines()[-1][:120])
        plane.kubectl("rollout", "undo", "-n", shop.namespace, "deployment/orders")
        self._rolled_out(["orders"])

    def _drain(self, found: Findings) -> None:
        plane, shop = self._plane, self._deployed["shop"]
        names = [each for each in shop.parts if each not in ("console", "oyez-scale")]
        least: dict[str, int] = {}
        drained = threading.Event()

        def watch() -> None:
            while not drained.wait(0.5):
                pods = self._pods()
                for name in names:
                    least[name] = min(least.get(name, 9), ready(pods, name))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        said = refusal(
            plane.kubectl,
            "drain",
            "node",
            "--delete-emptydir-data",
            "--ignore-daemonsets",
            "--timeout=20s",
        )
        drained.set()
        watcher.join(5)
        kept = min(least.values(), default=0)
        budget = "disruption budget" in said
        found.hold(
            "a drain of the only node",
            f"{kept} ready pod of each part, at least",
            right=kept >= 1 and budget,
            expected="1 of each, and a refusal by the budget",
        )
        plane.kubectl("uncordon", "node")
        self._rolled_out(names)

    def _tick(self, deployed: Deployed) -> list[tuple[str, int]]:
        """Publish the ticks; which they are."""
        from oyez.ambient import SystemAmbient
        from oyez.config import load
        from oyez.envelope import format_time
        from oyez.ports import Record
        from oyez.project import Project
        from oyez.transaction import Announcer, Origin

        project = Project(load(deployed.folder, self._outside_of(deployed)))
        (tick,) = project.service("counter").publishes
        ambient = SystemAmbient()
        announcer = Announcer(deployed.name, "counter", ambient)
        ticks = [(f"clock-{c}", number) for number in range(EACH) for c in range(CLOCKS)]
        records = []
        for clock, number in ticks:
            event = tick.cls(clock=clock, number=number)
            row = announcer.announce(event, Origin(), format_time(ambient.now()), 0.0, None)
            records.append(
                Record(stream=row.stream, key=row.key, headers=row.headers, data=row.data)
            )

        async def publish() -> None:
            broker = project.broker()
            await broker.open()
            try:
                for first in range(0, len(records), 200):
                    await broker.publish(records[first : first + 200])
            finally:
                await broker.close()

        asyncio.run(publish())
        return ticks

    def _counted(self, deployed: Deployed) -> int:
        return sum(self._ticks_counted(deployed).values())

    def _ticks_counted(self, deployed: Deployed) -> dict[tuple[str, int], int]:
        import asyncpg

        async def read() -> list[Any]:
            connection = await asyncpg.connect(self._servers.store("").partition("?")[0])
            try:
                rows: list[Any] = await connection.fetch(
                    "select clock, number, count(*) as times "
                    "from counter.counted group by clock, number"
                )
                return rows
            finally:
                await connection.close()

        return {(row["clock"], row["number"]): row["times"] for row in asyncio.run(read())}

    def _why(self) -> str:
        said = self._plane.kubectl("get", "hpa,pods,scaledobject", "-n", "counter")
        return f"{said}\n{self._processes.tail('keda-operator', 6)}"

    # -- what parts need ---------------------------------------------------------------------------

    @cached_property
    def _plane(self) -> ControlPlane:
        self._say("starting the control plane")
        plane = ControlPlane(self._work, self._binaries, self._debian, self._processes)
        plane.start()
        return plane

    @cached_property
    def _node(self) -> Node:
        self._say("starting the node")
        node = Node(self._work, self._binaries, self._debian, self._plane, self._processes)
        node.start()
        outside = dict.fromkeys(("node", "broker.servers.svc", "store.servers.svc"), NODE)
        names = Names(NODE, lambda: table(self._plane.get("services", "-A")["items"], outside))
        names.start()
        self._names = names
        return node

    @cached_property
    def _servers(self) -> Servers:
        self._say("starting NATS and PostgreSQL")
        servers = Servers(self._work / "servers", self._cache)
        servers.start()
        return servers

    @cached_property
    def _keda(self) -> Keda:
        binaries = self._cache / f"{AUTOSCALER.name}-{AUTOSCALER.version}"
        keda = Keda(self._work, binaries, AUTOSCALER.source(), self._plane, self._processes)
        keda.define()
        return keda

    def _start_shop(self) -> None:
        shop = self._deployed["shop"]
        if shop.name in self._running:
            return
        for name, command in companions(shop.folder).items():
            self._processes.start(f"outside-{name}", command, folder=shop.folder)
        self._place(shop)
        self._rolled_out(list(shop.parts))

    def _place(self, deployed: Deployed) -> None:
        """Put a system on the node, with its images, secrets and manifests."""
        self._say(f"starting {deployed.name} on the node")
        node, _ = self._node, self._keda
        for part in deployed.parts:
            node.load(deployed.images / f"{part}.tar")
        self._namespace(deployed)
        key = run(["openssl", "genpkey", "-algorithm", "ed25519"])
        values = secret_values(deployed.secrets, self._servers.broker, self._servers.store, key)
        for name, content in values.items():
            meta = {"name": name, "namespace": deployed.namespace}
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": content}
            self._plane.apply(secret)
        self._plane.kubectl("apply", "--server-side", "-k", str(deployed.overlay))
        self._names.refresh()
        self._running.add(deployed.name)

    def _namespace(self, deployed: Deployed) -> None:
        base = deployed.folder / "deploy" / "kubernetes" / "base" / "namespace.yaml"
        self._plane.kubectl("apply", "--server-side", "-f", str(base))

    def _rolled_out(self, names: list[str], deployed: Deployed | None = None) -> None:
        namespace = (deployed or self._deployed["shop"]).namespace
        for name in names:
            try:
                self._plane.kubectl(
                    "rollout", "status", "-n", namespace, f"deployment/{name}", "--timeout=300s"
                )
            except Failed as failure:
                said = self._plane.kubectl("get", "pods", "-n", namespace, "-o", "wide")
                raise Failed(f"{failure}\n{said}\n{self._words(name, namespace)}") from None

    def _words(self, name: str, namespace: str) -> str:
        pods = f"app.kubernetes.io/name={name}"
        try:
            return self._plane.kubectl(
                "logs", "-n", namespace, "-l", pods, "--all-containers", "--tail=8", "--prefix"
            )[-1500:]
        except Failed as failure:
            return str(failure)

    def _customers(self) -> Customers:
        gateway = self._plane.get("service", "gateway", "-n", "shop")["spec"]["clusterIP"]
        return Customers(self._deployed["shop"].folder, f"http://{gateway}:8080", self._pace)

    def _wait_for_orders(self, customers: Customers, count: float) -> None:
        until(
            f"{count:.0f} orders are accepted",
            lambda: len(customers.accepted) >= count,
            90,
            self._processes,
            lambda: shown(customers.errors),
        )

    @property
    def _outside(self) -> dict[str, str]:
        return self._outside_of(self._deployed["shop"])

    def _outside_of(self, deployed: Deployed) -> dict[str, str]:
        """Return the environment of who looks at a system from the node."""
        stores = {
            f"OYEZ_SERVICES_{name.upper()}_STORE": self._servers.store(name)
            for name in deployed.parts
            if f"{name}-store" in deployed.secrets and name != "gateway"
        }
        return {**os.environ, "OYEZ_BROKER": self._servers.broker, **stores}

    def _pods(self, name: str = "") -> list[dict[str, Any]]:
        """Return the pods of a part of the shop, or all of them."""
        label = ["-l", f"app.kubernetes.io/name={name}"] if name else []
        found: list[dict[str, Any]] = self._plane.get("pods", "-n", "shop", *label)["items"]
        return found

    def _ready_pods(self, name: str, *, but: str = "", image: str = "") -> int:
        return ready(self._pods(name), name, but=but, image=image)

    def _restarts(self, name: str, image: str) -> bool:
        return any(
            status["restartCount"] > 0
            for pod in self._pods(name)
            if pod["spec"]["containers"][0]["image"] == image
            for status in pod["status"].get("containerStatuses", ())
        )


def ready(pods: Sequence[Mapping[str, Any]], name: str, *, but: str = "", image: str = "") -> int:
    """Return how many pods of a part are ready: of that image if one is named, ``but`` for one."""
    return sum(
        any(
            c["type"] == "Ready" and c["status"] == "True"
            for c in pod["status"].get("conditions", ())
        )
        for pod in pods
        if pod["metadata"]["labels"]["app.kubernetes.io/name"] == name
        and pod["metadata"]["name"] != but
        and "deletionTimestamp" not in pod["metadata"]
        and (not image or pod["spec"]["containers"][0]["image"] == image)
    )


class _Replicas:
    """Looks at a Deployment, and keeps how many replicas it was to have."""

    def __init__(self, look: Callable[[], Mapping[str, Any]]) -> None:
        self._look = look
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.numbers: list[int] = []
        self.ready = 0

    def __enter__(self) -> _Replicas:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(5)

    @property
    def wanted(self) -> int:
        """How many it is to have."""
        return self.numbers[-1] if self.numbers else 0

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            try:
                found = self._look()
            except Failed:
                continue
            self.numbers.append(found["spec"]["replicas"])
            self.ready = found["status"].get("readyReplicas", 0)
