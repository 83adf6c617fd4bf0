"""The command line whose demo takes two iterations a picture: `python -m tests.support.hasty demo FOLDER`."""

from backfire import cli
from backfire.admin import demo

if __name__ == "__main__":
    demo.CONFIG += "protect: {iterations: 2}\n"
    cli.main()
