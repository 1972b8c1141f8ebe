"""``oyez deploy``: writes what a system needs to be deployed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from oyez.cli.invocation import json_option
from oyez.cli.printing import print_json, print_line, warn
from oyez.config.rules import NAME
from oyez.deploy import compose as composed
from oyez.deploy import image as images
from oyez.deploy import kubernetes as manifests
from oyez.deploy import pipelines
from oyez.deploy.generated import Written, write
from oyez.deploy.plan import Plan, plan
from oyez.inspection.form import escape
from oyez.project import Project

F = TypeVar("F", bound=Callable[..., Any])


@click.group("deploy")
def command() -> None:
    """Write images, Compose files, Kubernetes manifests and pipelines for this system.

    They follow from oyez.toml and the services' code alone, so the same project gives the same
    files. What was edited by hand is not overwritten without --force.
    """


def writes(function: F) -> F:
    """Add the options of every command that writes files."""
    for option in (
        json_option,
        click.option("--force", is_flag=True, help="Overwrite files that were edited by hand."),
        click.option("--check", is_flag=True, help="Write nothing; exit with 1 if one is stale."),
    ):
        function = option(function)
    return function


@command.command("image")
@click.argument("part")
@click.option("--base", metavar="IMAGE", help=f"The image to build on, {images.BASE}@sha256:….")
@writes
@click.pass_context
def image(
    context: click.Context, part: str, base: str | None, check: bool, force: bool, as_json: bool
) -> None:
    """Write the Containerfile of a service, of the gateway, the console or oyez-scale.

    It is written to deploy/PART, with what the image requires. Without --base, the base is given
    when the image is built. A file that is there keeps its base.
    """
    project = Project.open()
    found = plan(project, single=True)
    chosen = found.part(part)
    root = project.config.root
    files = images.image(found, chosen, root, images.base_of(root, chosen, base))
    written = write(root, files, f"oyez deploy image {part}", force=force, check=check)
    locked = root / images.FOLDER / part / "requirements.txt"
    report(
        context, found, written, check=check, as_json=as_json, more={"lock": images.lock(chosen)}
    )
    if not locked.exists():
        warn(f"{locked} is missing: pin what the image requires: {images.lock(chosen)}")


@command.command("compose")
@writes
@click.pass_context
def compose(context: click.Context, check: bool, force: bool, as_json: bool) -> None:
    """Write deploy/compose.yaml: the system on one machine, with its broker and stores.

    Secrets are files in deploy/secrets, which the head of the file lists.
    """
    project = Project.open()
    found = plan(project, single=True)
    files = {composed.FILE: composed.compose(found)}
    written = write(project.config.root, files, "oyez deploy compose", force=force, check=check)
    report(context, found, written, check=check, as_json=as_json)


@command.command("kubernetes")
@click.option("--overlay", metavar="NAME", help="Begin an overlay too, such as prod.")
@writes
@click.pass_context
def kubernetes(
    context: click.Context, overlay: str | None, check: bool, force: bool, as_json: bool
) -> None:
    """Write manifests to deploy/kubernetes: a base for Kustomize, and overlays on it.

    `kubectl apply -k deploy/kubernetes/overlays/NAME` applies them. Secrets are referred to and
    written nowhere: base/kustomization.yaml lists them.
    """
    if overlay is not None and not NAME.fullmatch(overlay):
        raise click.BadParameter(f"expected [a-z][a-z0-9-]{{0,40}}, found {overlay!a}")
    project = Project.open()
    found = plan(project)
    written = write(
        project.config.root,
        manifests.base(found),
        "oyez deploy kubernetes",
        folders=(f"{manifests.FOLDER}/base",),
        once=manifests.overlay(found, overlay) if overlay else None,
        force=force,
        check=check,
    )
    more = {"secrets": manifests.secrets(found)}
    report(context, found, written, check=check, as_json=as_json, more=more)


@command.command("ci")
@click.argument("forge", type=click.Choice(("github", "gitlab")))
@writes
@click.pass_context
def ci(context: click.Context, forge: str, check: bool, force: bool, as_json: bool) -> None:
    """Write pipelines that test, judge and deliver each part by itself.

    A part's pipeline runs when a file of it has changed, or one that all share. For GitLab it is
    .gitlab/deliver.yml, for you to include in .gitlab-ci.yml.
    """
    project = Project.open()
    found = plan(project, single=True)
    registry = project.config.deploy.registry or ""
    if not {".", ":"} & {*registry.partition("/")[0]}:
        expected = 'a registry such as "registry.example.com/shop", to which pipelines push'
        raise project.config.error("deploy.registry", expected, f'"{registry}"')
    repository, inside = pipelines.repository(project.config.root)
    make = pipelines.github if forge == "github" else pipelines.gitlab
    wanted = pipelines.requirements(found, project.config.root)
    files = {
        **make(found, inside),
        f"{inside}{pipelines.REQUIREMENTS}.in": wanted,
    }
    written = write(
        repository,
        files,
        "oyez deploy ci",
        folders=(pipelines.GITHUB,) if forge == "github" else (),
        force=force,
        check=check,
    )
    more = {"lock": pipelines.LOCK, "unchecked": pipelines.UNCHECKED}
    for reason in pipelines.UNCHECKED if not as_json else ():
        warn(f"not checked: {reason}")
    report(context, found, written, check=check, as_json=as_json, more=more)


def report(
    context: click.Context,
    found: Plan,
    written: list[Written],
    *,
    check: bool,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print what became of files; exit with 1 if they were only checked and one is stale."""
    stale = [each.path for each in written if each.state in ("written", "removed")]
    if as_json:
        files = {each.path: each.state for each in written}
        value = {"files": files, "changed": stale, "left_out": found.left_out, **(more or {})}
        print_json(value)
    else:
        for each in written:
            state = "stale" if check and each.path in stale else each.state
            print_line(escape(f"{each.path}: {state}"))
        for reason in found.left_out:
            warn(f"left out: {reason}")
    if check and stale:
        if not as_json:
            warn(f"write and commit them: {context.command_path}")
        context.exit(1)
