"""`python -m backfire.config > config.example.yaml`: every setting with its default and description."""

from backfire.config.example import everything

print(everything(), end="")
