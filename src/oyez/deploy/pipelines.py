"""Pipelines that test, judge and deliver each part of a system by itself."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from oyez.deploy.plan import Part, Plan
from oyez.deploy.yaml import document
from oyez.errors import ConfigurationError

GITHUB = ".github/workflows"
GITLAB = ".gitlab/deliver.yml"
REQUIREMENTS = "deploy/ci/requirements"
LOCK = f"pip-compile --generate-hashes --output-file {REQUIREMENTS}.txt {REQUIREMENTS}.in"
"""The command that pins what the tests of a pipeline require."""
UNCHECKED = (
    "the tags of actions and images, which only their registries can turn into digests: pin them, "
    "such as by `pinact run` or Renovate",
    "the secrets OYEZ_BROKER and KUBECONFIG (for GitHub those of the environment production)",
)
"""What nothing here can check."""

_SEEDS = 500
_PYTHON = "3.13"
_TIMEOUT = "10m"

Value = dict[str, Any]


def repository(root: Path) -> tuple[Path, str]:
    """Return the folder of the repository that a project is in, and the project's path in it.

    Raises ConfigurationError where there is none: pipelines belong to one.
    """
    for folder in (root, *root.parents):
        if (folder / ".git").exists():
            inside = root.relative_to(folder).as_posix()
            return folder, "" if inside == "." else f"{inside}/"
    raise ConfigurationError(f"{root}: expected a folder of a git repository, found none: git init")


def requirements(plan: Plan, root: Path) -> str:
    """Return what the tests of all parts require."""
    extras = sorted({extra for part in plan.parts for extra in part.extras})
    wanted = f"oyez[{','.join(extras)}]" if extras else "oyez"
    folders = sorted({path for part in plan.parts for path in part.include})
    own = [f"{path}/requirements.in" for path in folders]
    lines = [f"{wanted}=={version('oyez')}", "pytest"]
    lines += [f"-r ../../{path}" for path in own if (root / path).is_file()]
    return "".join(f"{line}\n" for line in lines)


def github(plan: Plan, inside: str) -> dict[str, str]:
    """Return a workflow for each part, by its path in the repository."""
    return {
        f"{GITHUB}/deliver-{part.name}.yaml": document(_workflow(plan, part, inside))
        for part in plan.parts
    }


def gitlab(plan: Plan, inside: str) -> dict[str, str]:
    """Return the jobs of all parts, in one file for ``include`` of ``.gitlab-ci.yml``."""
    jobs: Value = {"stages": ["test", "image", "deploy"]}
    for part in plan.parts:
        jobs |= _jobs(plan, part, inside)
    return {GITLAB: document(jobs)}


def _tests(part: Part) -> list[tuple[str, str]]:
    """Return what is run before there is an image: names and commands."""
    folders = " ".join(part.include)
    if part.kind != "service":
        return [("Settings and topology", "python -m oyez topology --check")]
    return [
        ("Tests", f"python -m pytest {folders}"),
        ("Contracts", "python -m oyez contracts check --format FORMAT"),
        ("Simulation", f"python -m oyez simulate --seeds {_SEEDS}"),
    ]


def _paths(part: Part, inside: str) -> list[str]:
    """Return the paths whose changes concern a part: its own, and what all parts share."""
    folders = [path if path.endswith(".py") else f"{path}/**" for path in part.include]
    manifests = [f"deploy/kubernetes/base/{part.name}.yaml", "deploy/kubernetes/overlays/**"]
    shared = ["oyez.toml", "contracts/**", f"deploy/{part.name}/**", *manifests, "deploy/ci/**"]
    return [f"{inside}{path}" for path in (*folders, *shared)]


def _rollout(part: Part) -> list[str]:
    """Return the commands that put an image, $IMAGE, where the system runs."""
    kind = "statefulset" if part.file else "deployment"
    overlay = "deploy/kubernetes/overlays/prod"
    return [
        f'(cd {overlay} && kustomize edit set image "{part.image}=$IMAGE")',
        # This part alone: the images of the others are not the business of this pipeline.
        f"kubectl kustomize {overlay} > deployed.yaml",
        "kubectl apply --server-side --filename deployed.yaml --selector oyez/shared=true",
        "kubectl apply --server-side --filename deployed.yaml "
        f"--selector app.kubernetes.io/name={part.name}",
        f"kubectl --namespace {{namespace}} rollout status {kind}/{part.name} --timeout {_TIMEOUT}",
    ]


def _doctor(part: Part) -> str:
    kind = "statefulset" if part.file else "deployment"
    asked = f"python3 -m oyez doctor {part.name}"
    return f"kubectl --namespace {{namespace}} exec {kind}/{part.name} -- {asked}"


def _build(plan: Plan, part: Part, inside: str) -> str:
    """Return the command that builds and pushes an image with its SBOM and provenance."""
    return (
        "docker buildx build --push --sbom=true --provenance=mode=max "
        f"--file {inside}deploy/{part.name}/Containerfile --metadata-file built.json "
        '--build-arg BASE="$BASE" --build-arg REVISION="$REVISION" --build-arg VERSION="$REVISION" '
        '--build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" '
        f'--tag "{part.image}:$REVISION" {inside or "."}'
    )


_DIGEST = (
    '"$(python3 -c \'import json; print(json.load(open("built.json"))["containerimage.digest"])\')"'
)


def _workflow(plan: Plan, part: Part, inside: str) -> Value:
    paths = _paths(part, inside)
    name = f"deliver-{part.name}"
    here = {"defaults": {"run": {"working-directory": inside.rstrip("/")}}} if inside else {}
    main = "github.ref == format('refs/heads/{0}', github.event.repository.default_branch)"
    checkout: Value = {"uses": "actions/checkout@v4", "with": {"persist-credentials": False}}
    prepare: list[Value] = [
        checkout,
        {"uses": "actions/setup-python@v5", "with": {"python-version": _PYTHON}},
        {"run": f"python -m pip install --require-hashes --requirement {REQUIREMENTS}.txt"},
    ]
    tests = [{"name": n, "run": c.replace("FORMAT", "github")} for n, c in _tests(part)]
    image: list[Value] = [
        checkout,
        {"uses": "docker/setup-buildx-action@v3"},
        {
            "uses": "docker/login-action@v3",
            "with": {
                "registry": part.image.split("/")[0],
                "username": "${{ secrets.REGISTRY_USER }}",
                "password": "${{ secrets.REGISTRY_PASSWORD }}",
            },
        },
        {
            "name": "Image, with its SBOM and provenance",
            "working-directory": "${{ github.workspace }}",
            "id": "build",
            "run": f"{_build(plan, part, inside)}\n"
            f'echo "image={part.image}@"{_DIGEST} >> "$GITHUB_OUTPUT"\n',
            "env": {"BASE": "${{ vars.OYEZ_BASE }}", "REVISION": "${{ github.sha }}"},
        },
        {"uses": "sigstore/cosign-installer@v3"},
        {
            "name": "Signature",
            "run": 'cosign sign --yes "$IMAGE"',
            "env": {"IMAGE": "${{ steps.build.outputs.image }}"},
        },
    ]
    if not inside:
        image[3].pop("working-directory")
    named = plan.namespace
    rollout = "".join(f"{line}\n" for line in _rollout(part)).replace("{namespace}", named)
    deploy: list[Value] = [*prepare]
    if part.kind == "service":
        can = f"python -m oyez contracts can-deploy {part.name} --format github"
        deploy.append({"name": "Can it be deployed beside what runs now?", "run": can})
    deploy += [
        {
            "name": "Cluster",
            "run": 'umask 077\nprintf %s "$CONFIG" > "$RUNNER_TEMP/kubeconfig"\n'
            'echo "KUBECONFIG=$RUNNER_TEMP/kubeconfig" >> "$GITHUB_ENV"\n',
            "env": {"CONFIG": "${{ secrets.KUBECONFIG }}"},
        },
        {
            "name": "Rollout",
            "run": rollout,
            "env": {"IMAGE": "${{ needs.image.outputs.image }}"},
        },
    ]
    if part.kind == "service":
        publish = f"python -m oyez contracts publish {part.name}"
        deploy.append({"name": "Doctor", "run": _doctor(part).replace("{namespace}", named)})
        deploy.append({"name": "Record what is deployed", "run": publish})
    return {
        "name": name,
        "on": {
            "push": {"paths": [*paths, f"{GITHUB}/{name}.yaml"]},
            "workflow_dispatch": None,
        },
        "permissions": {"contents": "read"},
        "concurrency": {"group": f"{name}-${{{{ github.ref }}}}", "cancel-in-progress": False},
        **here,
        "jobs": {
            "test": {
                "runs-on": "ubuntu-latest",
                "timeout-minutes": 30,
                "steps": [*prepare, *tests],
            },
            "image": {
                "needs": "test",
                "if": main,
                "runs-on": "ubuntu-latest",
                "timeout-minutes": 30,
                # The token of this job proves to Sigstore who signs: there is no key to keep.
                "permissions": {"contents": "read", "id-token": "write"},
                "outputs": {"image": "${{ steps.build.outputs.image }}"},
                "steps": image,
            },
            "deploy": {
                "needs": "image",
                "environment": "production",
                "runs-on": "ubuntu-latest",
                "timeout-minutes": 30,
                "env": {
                    "OYEZ_BROKER": "${{ secrets.OYEZ_BROKER }}",
                    "OYEZ_ENVIRONMENT": "production",
                    "OYEZ_RELEASE": "${{ github.sha }}",
                },
                "steps": deploy,
            },
        },
    }


def _jobs(plan: Plan, part: Part, inside: str) -> Value:
    changes = _paths(part, inside)
    enter = [f"cd {inside.rstrip('/')}"] if inside else []
    install = [f"python -m pip install --require-hashes --requirement {REQUIREMENTS}.txt"]
    python = {"image": f"python:{_PYTHON}-slim"}
    always: Value = {"rules": [{"changes": changes}]}
    main: Value = {"rules": [{"if": "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH", "changes": changes}]}
    tests = [command.replace("FORMAT", "text") for _, command in _tests(part)]
    rollout = [line.replace("{namespace}", plan.namespace) for line in _rollout(part)]
    deploy = [*enter]
    if part.kind == "service":
        deploy += [*install, f"python -m oyez contracts can-deploy {part.name}"]
    deploy += rollout
    if part.kind == "service":
        deploy.append(_doctor(part).replace("{namespace}", plan.namespace))
        deploy.append(f"python -m oyez contracts publish {part.name}")
    return {
        f"test {part.name}": {
            "stage": "test",
            **python,
            **always,
            "script": [*enter, *install, *tests],
        },
        f"image {part.name}": {
            "stage": "image",
            "image": "docker:28",
            "services": ["docker:28-dind"],
            **main,
            "needs": [f"test {part.name}"],
            # The token proves to Sigstore who signs: there is no key to keep.
            "id_tokens": {"SIGSTORE_ID_TOKEN": {"aud": "sigstore"}},
            "variables": {"REVISION": "$CI_COMMIT_SHA", "BASE": "$OYEZ_BASE"},
            "before_script": [
                "apk add --no-cache cosign git python3",
                'echo "$REGISTRY_PASSWORD" | docker login --username "$REGISTRY_USER" '
                f"--password-stdin {part.image.split('/')[0]}",
                "docker buildx create --use",
            ],
            "script": [
                _build(plan, part, inside),
                f'echo "IMAGE={part.image}@"{_DIGEST} > image.env',
                '. ./image.env && cosign sign --yes "$IMAGE"',
            ],
            "artifacts": {"reports": {"dotenv": "image.env"}},
        },
        f"deploy {part.name}": {
            "stage": "deploy",
            # An image of yours with Python, kubectl and kustomize.
            "image": "$OYEZ_DEPLOY_IMAGE",
            **main,
            "needs": [f"image {part.name}"],
            "environment": {"name": "production"},
            "resource_group": f"deploy-{part.name}",
            "variables": {"OYEZ_ENVIRONMENT": "production", "OYEZ_RELEASE": "$CI_COMMIT_SHA"},
            "script": deploy,
        },
    }
