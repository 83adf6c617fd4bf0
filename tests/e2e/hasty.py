"""`python -m tests.e2e.hasty demo FOLDER`: the command line, whose demo takes two iterations a picture."""

from backfire import cli
from backfire.admin import demo

if __name__ == "__main__":
    demo.CONFIG += "protect: {iterations: 2}\n"
    cli.main()
