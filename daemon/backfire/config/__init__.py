"""The configuration: YAML in, frozen typed settings out.

`load` reads a file and `parse` checks a mapping; both return `Settings`, or raise a ConfigError
that names every mistake at once with its remedy. Unknown keys are errors that name the nearest
valid one. Relative paths are relative to the file that holds them, and all folders but `inbox`
default to siblings of it.
"""

from backfire.config.load import load, parse, state_of
from backfire.config.models import (
    IGNORE,
    DeclaredEditor,
    Folders,
    Hooks,
    Limits,
    Models,
    Output,
    Protect,
    Rule,
    Serve,
    Settings,
    Verify,
    Watch,
)
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
from backfire.config.strengths import STRENGTHS

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
