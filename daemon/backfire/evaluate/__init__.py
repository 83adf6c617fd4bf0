"""Replay edits on the decoded file, judge them, and write down what was found: receipt and sheet."""
