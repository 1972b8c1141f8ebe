"""What is to go away says so where it is used: see *How something goes away* in the policy."""

from __future__ import annotations

import sys
import warnings
from typing import NamedTuple


class Leaving(NamedTuple):
    """Something public that is to go away.

    ::

        _CALL = Leaving("Service.call", since="0.3", instead="Service.on")


        def call(self) -> None:
            _CALL.warn()
    """

    what: str
    """A name, an argument, the key of a setting, an option of a command."""
    since: str
    """The first version that warns."""
    instead: str
    """What to use."""

    def __str__(self) -> str:
        return f"{self.what} is deprecated since {self.since}: use {self.instead}"

    def warn(self, depth: int = 1) -> None:
        """Warn of a name or an argument, at the place where the caller was called.

        ``depth`` is the number of calls between that place and this one.
        """
        warnings.warn(str(self), DeprecationWarning, stacklevel=depth + 2)

    def tell(self, place: str) -> None:
        """Tell on standard error, in one line, that a setting or an option is used at a place.

        A `config.rules.Rule` that is ``leaving`` has this done wherever it is set.
        """
        sys.stderr.write(f"{place}: {self}\n")
