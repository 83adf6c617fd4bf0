"""A double of the command line, whose demo takes two iterations a picture and a narrow margin.

Two iterations break no edit, so any perturbation passes the thresholds: what is tested is that the demo runs.
"""

import yaml

from backfire import cli
from backfire.admin import demo
from tests.support.sandbox import QUICK

if __name__ == "__main__":
    demo.CONFIG += yaml.safe_dump(QUICK)
    cli.main()
