"""Backfire: a watch-folder daemon that makes AI edits of protected regions backfire."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("backfire")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
