"""The configuration: YAML in, frozen typed settings out.

`load` reads a file and `parse` checks a mapping; both return `Settings`, or raise a ConfigError
that names every mistake at once with its remedy. Unknown keys are errors that name the nearest
valid one. Relative paths are relative to the file that holds them, and all folders but `inbox`
default to siblings of it.
"""

from backfire.config.editors import DeclaredEditor, Models
from backfire.config.folders import Folders
from backfire.config.hooks import Hooks
from backfire.config.limits import Limits
from backfire.config.load import load, parse, state_of
from backfire.config.output import Output
from backfire.config.protect import STRENGTHS, Protect
from backfire.config.provenance import Provenance
from backfire.config.regions import (
    Command,
    Faces,
    FixedBox,
    Logos,
    Onnx,
    Regions,
    Sidecars,
    Text,
    TorchScript,
)
from backfire.config.serve import Serve
from backfire.config.settings import Rule, Settings
from backfire.config.verify import Verify
from backfire.config.watch import IGNORE, Watch

__all__ = [
    "IGNORE",
    "STRENGTHS",
    "Command",
    "DeclaredEditor",
    "Faces",
    "FixedBox",
    "Folders",
    "Hooks",
    "Limits",
    "Logos",
    "Models",
    "Onnx",
    "Output",
    "Protect",
    "Provenance",
    "Regions",
    "Rule",
    "Serve",
    "Settings",
    "Sidecars",
    "Text",
    "TorchScript",
    "Verify",
    "Watch",
    "load",
    "parse",
    "state_of",
]
