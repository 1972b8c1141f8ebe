"""`oyez dev` for a campaign: what dies is started again at once, however often it has died before.

Elsewhere the supervisor waits longer from death to death, so as not to start for nothing what can't
live. Here it would be waiting most of the time, and nobody would be there to be killed.
"""

from oyez.cli import dev, main

dev._RESTART = (0.0,)

main()
