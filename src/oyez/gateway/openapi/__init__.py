"""What there is behind the gateway, for programs and for people.

::

    served.py       /openapi.json and /reference: fetched from the services, and kept
    merged.py       one description made of theirs, of what the routes let through
    page.py         the same as a page
    reference.html  its template, which has its style and no script
"""

from oyez.gateway.openapi.served import Openapi

__all__ = ["Openapi"]
