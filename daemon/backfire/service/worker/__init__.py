"""The worker: what is ordered of it, and the child process that does it."""
