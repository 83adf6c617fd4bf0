"""`python -m backfire.cli`."""

from backfire.cli import main

main()
