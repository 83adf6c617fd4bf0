"""The worker: what is ordered of it and what comes back (`protocol`), and the child process that does it."""
