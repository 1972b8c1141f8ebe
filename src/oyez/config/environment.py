"""The environment, with what its variables refer to: ``NAME_FILE`` is a file that holds ``NAME``.

So secrets stay out of the environment, which child processes inherit and crash reports show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from oyez.config.mistakes import mistake
from oyez.errors import ConfigurationError

_SUFFIX = "_FILE"
_MOST = 65_536
"""Bytes of such a file."""


def given(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return a variable, or the contents of the file that ``NAME_FILE`` names; None without both.

    ``environ`` is ``os.environ`` unless given. A line break at the end of the file is none of it.
    Raises ConfigurationError for both, and for a file that can't be read or is empty.
    """
    environ = os.environ if environ is None else environ
    variable = f"{name}{_SUFFIX}"
    if variable not in environ:
        return environ.get(name)
    if name in environ:
        raise mistake("environment", variable, f"either it or {name}", "both")
    return _content(variable, environ[variable])


def resolved(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with what its ``OYEZ_…_FILE`` refer to in their place.

    Raises ConfigurationError, as `given` does.
    """
    found = dict(environ)
    for variable in environ:
        name = variable.removesuffix(_SUFFIX)
        if variable.startswith("OYEZ_") and name != variable:
            text = given(name, environ)
            del found[variable]
            found[name] = text or ""
    return found


def _content(variable: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "what is no text"
        raise _wrong(variable, f"{reason} at {path}") from None
    if len(content) > _MOST:
        raise _wrong(variable, f"more than {_MOST} bytes at {path}")
    if not text.strip():
        raise _wrong(variable, f"nothing at {path}")
    return text.removesuffix("\n").removesuffix("\r")


def _wrong(variable: str, found: str) -> ConfigurationError:
    return mistake("environment", variable, "a file with the secret", found)
