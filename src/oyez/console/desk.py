"""What every page is given: the system, the person, its templates, and what has to be answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from oyez.ambient import Ambient
from oyez.console import safe
from oyez.console.access import Access, Person, Session
from oyez.console.flows import Flows
from oyez.console.live import Live
from oyez.console.refusals import in_words
from oyez.console.system import System
from oyez.inspection.form import escape, span, utc_time
from oyez.runtime.redrive import Preview, Refused

_HERE = Path(__file__).parent


class Screen(msgspec.Struct, frozen=True, kw_only=True):
    """One screen of the console, with an entry in its menu."""

    title: str
    path: str
    """Its first page."""
    key: str
    """The letter that goes there, after ``g``."""
    routes: Sequence[Route]


class Desk:
    """Shared by all pages of one console."""

    def __init__(
        self,
        system: System,
        live: Live,
        access: Access,
        ambient: Ambient,
        screens: Sequence[Screen],
        *,
        by_provider: bool = False,
    ) -> None:
        """``by_provider``: whether people may also sign in at a provider."""
        self.system = system
        self.live = live
        self.access = access
        self.ambient = ambient
        self.flows = Flows(system, ambient)
        self.paths = frozenset(screen.path for screen in screens)
        """Where its screens begin."""
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            seen=safe.seen,
            brief=safe.brief,
            in_words=_in_words,
            ago=self._ago,
            span=span,
            figure=figure,
            spark=spark,
        )
        self._templates.filters.update(glance=safe.glance, moment=moment, plain=escape)
        self._templates.globals.update(system=system.name, screens=screens, by_provider=by_provider)

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page. Templates escape every value; ``seen`` is for what came from an event."""
        session: Session | None = request.scope["state"]["session"]
        text = self._templates.get_template(template).render(
            session=session,
            here=request.url.path,
            may_operate=session is not None and "operate" in session.person.roles,
            **values,
        )
        return HTMLResponse(text, status)

    def part(self, template: str, **values: Any) -> Markup:
        """Return a part of a page, for pages that are kept up to date."""
        text = self._templates.get_template(template).render(**values)
        return Markup(text)  # noqa: S704 - a template has escaped every value

    def problem(self, request: Request, status: int, title: str, detail: str) -> Response:
        """Return the page of an error: what it is, and what can be done."""
        return self.page(request, "problem.html", status, title=title, detail=detail)

    def _ago(self, seconds: float | None) -> Markup:
        """Return a time, relative to now, with the absolute one behind it."""
        if seconds is None:
            return Markup('<span class="unknown">unknown</span>')
        distance = self.ambient.now() - seconds
        text = f"{span(distance)} ago" if distance >= 0 else f"in {span(-distance)}"
        if abs(distance) < 1:
            text = "now"
        at = utc_time(seconds)
        return Markup('<time datetime="{}" title="{}">{}</time>').format(at, at, text)


def _in_words(refused: Refused | Preview) -> Markup:
    """Return why a letter was, or would be, refused."""
    text = refused.why if isinstance(refused, Refused) else refused.refused
    return safe.seen(in_words(refused.cause, text), 400)


def desk(request: Request) -> Desk:
    """Return the desk of a request."""
    found: Desk = request.app.state.desk
    return found


def person(request: Request) -> Person:
    """Return who is signed in; the guard has let nobody else pass."""
    session: Session = request.scope["state"]["session"]
    return session.person


def form(request: Request) -> Mapping[str, str]:
    """Return the fields of a form; the guard has read it and checked where it comes from."""
    fields: Mapping[str, str] = request.scope["state"]["form"]
    return fields


def figure(value: float | None, digits: int = 0) -> Markup:
    """Return a number with thin spaces between thousands; a dash where it is not known."""
    if value is None:
        return Markup('<span class="unknown" title="unknown">\u2013</span>')
    return Markup("{}").format(f"{value:,.{digits}f}".replace(",", "\u202f"))


def moment(seconds: float) -> Markup:
    """Return a time in UTC, to the millisecond."""
    at = utc_time(seconds) or ""
    return Markup('<time datetime="{}">{}</time>').format(at, at[:-4].replace("T", " "))


def spark(values: Sequence[float], width: int = 96, height: int = 20) -> Markup:
    """Return a line of these values as a picture. It is decoration: figures stand beside it."""
    if len(values) < 2:
        return Markup("")
    top = max(values) or 1.0
    step = width / (len(values) - 1)
    points = " ".join(
        f"{index * step:.1f},{height - 2 - value / top * (height - 4):.1f}"
        for index, value in enumerate(values)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" width="{}" height="{}" aria-hidden="true">'
        '<polyline points="{}"/></svg>'
    ).format(width, height, width, height, points)
