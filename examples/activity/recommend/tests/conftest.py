"""A night comes each minute."""

from __future__ import annotations

import os

os.environ["ACTIVITY_NIGHT"] = "60"  # to walk through a day of virtual time takes a while
