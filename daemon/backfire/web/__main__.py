"""The page's process: `python -m backfire.web OPTIONS`, which `backfire page` becomes."""

from __future__ import annotations

import sys

from backfire.web.options import Options
from backfire.web.server import serve

if __name__ == "__main__":
    serve(Options.from_json(sys.argv[1]))
