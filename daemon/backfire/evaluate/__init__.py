"""Edits replayed on the decoded file, the verdict over them, and what is written down: receipt and sheet."""
