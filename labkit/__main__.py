"""`python -m labkit` is the same as `labkit`."""

from labkit.cli import main

main()
