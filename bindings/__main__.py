"""``python -m saccade``: the command line."""

from saccade.cli import main

main()
