"""The daemon: watch, take in, dispatch to the worker, publish, archive; and what surrounds that."""
