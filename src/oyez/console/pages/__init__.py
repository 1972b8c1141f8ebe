"""The screens, one module each.

How a screen is made: a module that asks, shapes and renders.

- **Ask** with `Desk.system` (services, at their admin ports: add a method there, its answer's type
  to `oyez.console.answers` and its route to `oyez.console.api`) or `Desk.live` (what was asked
  for all viewers). An answer is a value or a gap: hand both to the template, and show a gap where
  its value would have stood.
- **Shape** in plain functions from answers to values, which a test calls without HTTP.
- **Render** with ``desk(request).page(request, "NAME.html", …)``. The template extends
  ``layout.html``; every value is escaped, and what came from an event goes through ``seen``
  (``{{ letter.reason | seen }}``). Times are ``| ago``, numbers ``| figure``, payloads the macro
  ``payload``, gaps the macro ``gaps``. No script and no style stands in a page.
- **Change** something only by a form with ``{{ csrf(session) }}`` to a route with
  ``methods=["POST"]``. `oyez.console.app` has then checked site, session, role and form; take its
  fields from ``form(request)``, call `System.act`, and answer with a redirect (303) to where its
  effect is seen.
- **Keep it up to date**, where that helps, by a route that returns ``live(…)`` of
  `oyez.console.pages.streaming`, named in ``data-live`` of the part that it replaces.

The module ends with its `Screen`, which stands in `SCREENS` below: that gives it its place in the
menu, its key, and its routes, of which none passes without a session.
"""

from oyez.console.pages.audit import AUDIT
from oyez.console.pages.contracts import CONTRACTS
from oyez.console.pages.dead import DEAD
from oyez.console.pages.events import EVENTS
from oyez.console.pages.flow import FIND
from oyez.console.pages.overview import OVERVIEW
from oyez.console.pages.sagas import SAGAS
from oyez.console.pages.services import SERVICES

SCREENS = (OVERVIEW, FIND, SERVICES, DEAD, SAGAS, EVENTS, CONTRACTS, AUDIT)
"""The screens in the order of the menu."""
