"""Makes the generated pages of the documentation: `python -m docs.generate`."""
