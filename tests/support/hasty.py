"""A double of the command line, whose demo takes two iterations a picture.

Two iterations break no edit, so any perturbation passes the thresholds: what is tested is that the demo runs.
"""

import json

from backfire import cli
from backfire.admin import demo

from tests.support.sandbox import LENIENT

if __name__ == "__main__":
    demo.CONFIG += f"protect: {{iterations: 2}}\nverify: {json.dumps(LENIENT)}\n"
    cli.main()
