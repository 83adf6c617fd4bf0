"""Hooks: a webhook or a command that is told when a picture is published or has failed."""
