"""Training of the editors that ship inside the package; see README.md beside this file."""
