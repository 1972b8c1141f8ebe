"""``python -m oyez`` is the ``oyez`` command."""

from oyez.cli import main

main()
