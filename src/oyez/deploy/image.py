"""The image of one part: a Containerfile, what goes into its context, and what it requires."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from oyez.deploy.plan import HOME, USER, Part, Plan
from oyez.errors import ConfigurationError

FOLDER = "deploy"
BASE = "python:3.13-slim"
"""The base that is proposed. Which digest it has today only a registry can tell."""

_SITE = "/opt/oyez"


def image(plan: Plan, part: Part, root: Path, base: str | None) -> dict[str, str]:
    """Return the files of a part's image, by their paths below the project's folder.

    ``base`` is the image to build on, by its digest; without one, whoever builds has to give it.
    """
    folder = f"{FOLDER}/{part.name}"
    return {
        f"{folder}/Containerfile": _containerfile(plan, part, base),
        f"{folder}/Containerfile.dockerignore": _ignored(part),
        f"{folder}/requirements.in": _requirements(part, root),
    }


def lock(part: Part) -> str:
    """Return the command that pins what an image requires, to be run in the project's folder."""
    file = f"{FOLDER}/{part.name}/requirements"
    return f"pip-compile --generate-hashes --output-file {file}.txt {file}.in"


def check_base(base: str) -> str:
    """Return a base image. Raises ConfigurationError for one that tomorrow may be another."""
    digest = base.partition("@sha256:")[2]
    pinned = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    named = base.isprintable() and " " not in base
    if not named or not (pinned or base.startswith("localhost/")):
        raise ConfigurationError(
            f"--base: expected an image by its digest, such as {BASE}@sha256:…, or one of "
            f"localhost/, found {base!a}: `skopeo inspect --format '{{{{.Digest}}}}' "
            f"docker://docker.io/library/{BASE}` tells it"
        )
    return base


def base_of(root: Path, part: Part, given: str | None) -> str | None:
    """Return the base that is given, or that of the part's Containerfile; None without both."""
    if given is not None:
        return check_base(given)
    try:
        text = (root / FOLDER / part.name / "Containerfile").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    return found[1] if found else None


def _containerfile(plan: Plan, part: Part, base: str | None) -> str:
    folder = f"{FOLDER}/{part.name}"
    given = f"ARG BASE={base}" if base else "ARG BASE"
    copied = "\n".join(f"COPY {path} {HOME}/{path}" for path in ("oyez.toml", *part.include))
    data = f"{HOME}/{plan.data}"
    command = ", ".join(f'"{word}"' for word in part.command)
    return f"""\
# Build it in the project's folder, once `{lock(part)}` has pinned what it requires:
#   buildah build --file {folder}/Containerfile --ignorefile {folder}/Containerfile.dockerignore \\
#     --timestamp "$SOURCE_DATE_EPOCH" --build-arg REVISION="$(git rev-parse HEAD)" \\
#     --tag {part.image} .
# The base has a digest, so that today's image can be built tomorrow: without --base of
# `oyez deploy image`, give it as --build-arg BASE={BASE}@sha256:DIGEST. A builder of its own is
# for a base without pip. Wheels in {folder}/wheels are taken before those of the index, which
# is that of PIP_INDEX_URL, or with PIP_NO_INDEX=1 none.
{given}
ARG BUILDER=${{BASE}}

FROM ${{BUILDER}} AS build
ARG SOURCE_DATE_EPOCH=0
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ENV SOURCE_DATE_EPOCH=${{SOURCE_DATE_EPOCH}} PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY {folder}/ /build/
RUN mkdir -p /build/wheels \\
 && python3 -m pip install --require-hashes --no-deps --only-binary :all: --no-compile \\
      --find-links /build/wheels --target {_SITE} --requirement /build/requirements.txt \\
 && PYTHONPATH={_SITE} python3 -m oyez.deploy.slim packages {_SITE}

FROM ${{BASE}}
ARG REVISION
ARG VERSION
LABEL org.opencontainers.image.title="{part.name}" \\
      org.opencontainers.image.description="{part.name} of {plan.system}" \\
      org.opencontainers.image.revision="${{REVISION}}" \\
      org.opencontainers.image.version="${{VERSION}}"
COPY --from=build {_SITE} {_SITE}
ENV PYTHONPATH={_SITE} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Without installers, and with its library compiled, as what runs can't write.
RUN ["python3", "-m", "oyez.deploy.slim", "interpreter"]
{copied}
RUN ["python3", "-m", "oyez.deploy.slim", "code", "{HOME}"]
# A new volume here takes over whose this folder is.
RUN ["python3", "-c", "import os; os.makedirs('{data}'); os.chown('{data}', {USER}, {USER})"]
ENV OYEZ_RELEASE=${{VERSION}} OYEZ_PROJECT={HOME}/oyez.toml HOME=/tmp
WORKDIR {HOME}
USER {USER}:{USER}
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "oyez"]
CMD [{command}]
"""


def _ignored(part: Part) -> str:
    """Return what is not sent to the build: all but what is copied, and of that no tests."""
    wanted = ("oyez.toml", f"{FOLDER}/{part.name}", *part.include)
    kept = "".join(f"!{path}\n" for path in wanted)
    return f"*\n{kept}**/__pycache__\n**/tests\n"


def _requirements(part: Part, root: Path) -> str:
    """Return what the image requires: Oyez with the extras it needs, and what its code needs."""
    extras = f"[{','.join(part.extras)}]" if part.extras else ""
    lines = [f"oyez{extras}=={version('oyez')}"]
    for path in part.include:
        own = f"{path}/requirements.in"
        if (root / own).is_file():
            lines.append(f"-r ../../{own}")
    return "".join(f"{line}\n" for line in lines)
