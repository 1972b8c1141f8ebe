"""Manifests for Kubernetes, as a base of Kustomize and overlays on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oyez.deploy.plan import ADMIN, HOME, SCALE, SECRETS, USER, VARIABLES, Given, Part, Plan
from oyez.deploy.policies import everywhere, pods, policy
from oyez.deploy.yaml import document, documents

FOLDER = "deploy/kubernetes"
SHARED = "oyez/shared"
"""The label of what no part owns: a pipeline applies it, and its own part."""
_NAME = "app.kubernetes.io/name"
_TOLD = """\
# Memory has a limit. CPU has none: it would keep from a part what nobody else uses, and a process
# that is held back misses its lease.
"""
_STARTING = {"periodSeconds": 1, "failureThreshold": 60}
"""A minute to start, in which nothing but the start is looked for."""

Value = dict[str, Any]


def base(plan: Plan) -> dict[str, str]:
    """Return the files of the base, by their paths below the project's folder."""
    files = {"oyez.toml": plan.settings, "namespace.yaml": document(_namespace(plan))}
    files["network.yaml"] = document(everywhere({SHARED: "true"}))
    for part in plan.parts:
        files[f"{part.name}.yaml"] = _TOLD + documents(list(_objects(plan, part)))
    names = sorted(name for name in files if name.endswith(".yaml"))
    files["kustomization.yaml"] = _kustomization(plan, names)
    return {f"{FOLDER}/base/{name}": text for name, text in files.items()}


def overlay(plan: Plan, name: str) -> dict[str, str]:
    """Return the files that an overlay begins with: from then on its owner's."""
    text = document(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": plan.namespace,
            "resources": ["../../base"],
            "images": [
                {"name": each.image, "newName": each.image, "newTag": "unreleased"}
                for each in plan.parts
            ],
        }
    )
    told = (
        "# Yours to edit: `oyez deploy kubernetes` made it once. A release sets its images:\n"
        "#   kustomize edit set image NAME=REGISTRY/NAME@sha256:DIGEST\n"
        "# What differs from the base goes below patches.\n"
    )
    return {f"{FOLDER}/overlays/{name}/kustomization.yaml": told + text}


def secrets(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the Secrets that have to be there: what each of their keys is."""
    found: dict[str, dict[str, str]] = {}
    for part in plan.parts:
        for given in (*part.given, *([part.migrates] if part.migrates else [])):
            found.setdefault(given.secret, {})[given.key] = _meaning(given)
    return dict(sorted(found.items()))


def _meaning(given: Given) -> str:
    if given.url:
        role = ", of a role that may change its tables" if "-migrate" in given.secret else ""
        return f"the URL {given.url}, with user and password{role}"
    known = {
        "OYEZ_TOKEN": "the token of admin ports",
        "OYEZ_SCALE_TOKEN": "the token for /oyez/scale",
    }
    if given.key == "gateway.secret":
        return "32 random bytes at least, which sign sessions"
    if given.key == "gateway.key":
        return "an Ed25519 key in PEM, which signs identities"
    return known.get(given.variable, f"the variable {given.variable} of oyez.toml")


def _kustomization(plan: Plan, names: Sequence[str]) -> str:
    told = ["# It needs these Secrets, which are written nowhere here:\n"]
    for secret, keys in secrets(plan).items():
        told += [f"#   {secret}: {key} is {meaning}\n" for key, meaning in keys.items()]
    value = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": plan.namespace,
        "resources": list(names),
        # Its name gets a hash of its content: a changed file is a rollout.
        "configMapGenerator": [
            {"name": "oyez", "files": ["oyez.toml"], "options": {"labels": {SHARED: "true"}}}
        ],
    }
    return "".join(told) + document(value)


def _namespace(plan: Plan) -> Value:
    level = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    metadata = {"name": plan.namespace, "labels": {**level, SHARED: "true"}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _objects(plan: Plan, part: Part) -> Iterator[Mapping[str, Any]]:
    name, labels = part.name, _labels(plan, part)
    metadata = {"name": name, "labels": labels}
    yield {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }
    yield _stateful(plan, part, labels) if part.file else _deployment(plan, part, labels)
    if part.port is not None or part.file:
        port = part.port or ADMIN
        spec: Value = {
            "selector": {_NAME: name},
            "ports": [{"name": "http" if part.port else "admin", "port": port}],
        }
        if part.port is None:
            spec = {"clusterIP": "None", **spec}
        yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    yield {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        "spec": {"maxUnavailable": 1, "selector": pods(name)},
    }
    yield policy(plan, part, labels)
    if part.replicas.least < part.replicas.most:
        yield from _scaling(plan, part, metadata)
    if plan.monitor and part.admin:
        yield {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": metadata,
            "spec": {
                "selector": pods(name),
                "podMetricsEndpoints": [{"port": "admin", "path": "/metrics"}],
            },
        }


def _labels(plan: Plan, part: Part) -> Value:
    return {
        _NAME: part.name,
        "app.kubernetes.io/component": part.kind,
        "app.kubernetes.io/part-of": plan.system,
    }


def _deployment(plan: Plan, part: Part, labels: Value) -> Value:
    fixed = part.replicas.least == part.replicas.most
    spec: Value = {
        # Without a number where it is an autoscaler's.
        **({"replicas": part.replicas.least} if fixed else {}),
        "selector": pods(part.name),
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        },
        "template": _template(plan, part, labels),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": part.name, "labels": labels, **_flows(part)},
        "spec": spec,
    }


def _stateful(plan: Plan, part: Part, labels: Value) -> Value:
    """Return the one pod of a part with a file: a new one starts when the old one has ended."""
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOncePod"],
            "resources": {"requests": {"storage": part.wants.storage}},
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": part.name, "labels": labels, **_flows(part)},
        "spec": {
            "replicas": 1,
            "serviceName": part.name,
            "selector": pods(part.name),
            "template": _template(plan, part, labels),
            "volumeClaimTemplates": [claim],
        },
    }


def _flows(part: Part) -> Value:
    told = {"oyez/publishes": part.publishes, "oyez/handles": part.handles}
    found = {key: " ".join(types) for key, types in told.items() if types}
    return {"annotations": found} if found else {}


def _template(plan: Plan, part: Part, labels: Value) -> Value:
    spec: Value = {
        "serviceAccountName": part.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": part.grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": pods(part.name),
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ],
    }
    if part.migrates is not None:
        spec["initContainers"] = [_migrate(plan, part, part.migrates)]
    spec["containers"] = [_container(plan, part)]
    spec["volumes"] = list(_volumes(plan, part))
    return {"metadata": {"labels": labels}, "spec": spec}


def _container(plan: Plan, part: Part) -> Value:
    ports = [{"name": "http", "containerPort": part.port}] if part.port else []
    if part.admin:
        ports.append({"name": "admin", "containerPort": ADMIN})
    environment: list[Value] = []
    if part.admin:
        environment = [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": part.admin, "value": f"$(POD_IP):{ADMIN}"},
        ]
    environment += [{"name": key, "value": value} for key, value in part.environment.items()]
    return {
        "name": part.name,
        "image": part.image,
        "args": list(part.command),
        "ports": ports,
        "env": [*environment, *_files(part.given)],
        **_probes(part),
        **_bounds(part),
        "volumeMounts": list(_mounts(plan, part, part.given)),
    }


def _migrate(plan: Plan, part: Part, store: Given) -> Value:
    """Return the container that migrates the store before a pod's service starts."""
    variables = tuple(each for each in part.given if each.secret == VARIABLES)
    given = (store, *variables)
    return {
        "name": "migrate",
        "image": part.image,
        "args": ["migrate", part.name],
        "env": list(_files(given)),
        **_bounds(part),
        "volumeMounts": list(_mounts(plan, part, given)),
    }


def _bounds(part: Part) -> Value:
    """Return the resources and rights of a container."""
    return {
        "resources": {
            "requests": {"cpu": part.wants.cpu, "memory": part.wants.memory},
            "limits": {"memory": part.wants.memory},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _probes(part: Part) -> Value:
    if not part.admin:
        probe: Value = {"tcpSocket": {"port": "http"}}
        return {
            "startupProbe": {**probe, **_STARTING},
            "readinessProbe": probe,
            "livenessProbe": {**probe, "failureThreshold": 6},
        }
    live: Value = {"httpGet": {"path": "/livez", "port": "admin"}}
    ready: Value = {"httpGet": {"path": "/readyz", "port": "admin"}}
    return {
        "startupProbe": {**live, **_STARTING},
        "readinessProbe": {**ready, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {**live, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
    }


def _files(given: Sequence[Given]) -> Iterator[Value]:
    for each in given:
        if each.variable:
            yield {"name": f"{each.variable}_FILE", "value": each.file}


def _mounts(plan: Plan, part: Part, given: Sequence[Given]) -> Iterator[Value]:
    yield {"name": "settings", "mountPath": f"{HOME}/oyez.toml", "subPath": "oyez.toml"}
    yield {"name": "data", "mountPath": f"{HOME}/{plan.data}"}
    yield {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - a volume of its own
    for secret in dict.fromkeys(each.secret for each in given if each.variable):
        yield {"name": secret, "mountPath": f"{SECRETS}/{secret}", "readOnly": True}
    for each in given:
        if not each.variable:
            path = f"{HOME}/{plan.data}/{each.key}"
            yield {"name": each.secret, "mountPath": path, "subPath": each.key, "readOnly": True}


def _volumes(plan: Plan, part: Part) -> Iterator[Value]:
    yield {"name": "settings", "configMap": {"name": "oyez"}}
    if not part.file:
        yield {"name": "data", "emptyDir": {"sizeLimit": "64Mi"}}
    yield {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}
    given = (*part.given, *([part.migrates] if part.migrates else []))
    for secret in dict.fromkeys(each.secret for each in given):
        yield {"name": secret, "secret": {"secretName": secret, "defaultMode": 0o440}}


def _scaling(plan: Plan, part: Part, metadata: Value) -> Iterator[Value]:
    """Return what lets KEDA ask `oyez scale serve` how many replicas there should be."""
    reference = {"parameter": "token", "name": "oyez-scale", "key": "token"}
    yield {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": metadata,
        "spec": {"secretTargetRef": [reference]},
    }
    yield {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"name": part.name},
            "minReplicaCount": part.replicas.least,
            # A partition has one reader: more replicas have nothing to do.
            "maxReplicaCount": max(part.replicas.least, min(part.replicas.most, plan.partitions)),
            "fallback": {"failureThreshold": 3, "replicas": part.replicas.least},
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}}
                }
            },
            "triggers": [
                {
                    "type": "metrics-api",
                    "metricType": "AverageValue",
                    "metadata": {
                        "url": f"http://oyez-scale.{plan.namespace}.svc:{SCALE}/{part.name}",
                        "valueLocation": "wanted",
                        "targetValue": "1",
                        "authMode": "bearer",
                    },
                    "authenticationRef": {"name": part.name},
                }
            ],
        },
    }
