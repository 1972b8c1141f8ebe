"""What can go wrong with a server, always with what to do about it."""

from __future__ import annotations


class ServiceError(Exception):
    """A server that can't be brought where it was asked to be: what happened, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n{self.remedy}"


class Missing(ServiceError):
    """A program that Debian's packages bring is not on this machine."""

    def __init__(self, program: str, package: str) -> None:
        super().__init__(
            f"{program} is missing",
            f"run scripts/system-packages as root, or install Debian's {package}",
        )


class NotReady(Exception):
    """A server that does not answer yet, and how that showed."""
