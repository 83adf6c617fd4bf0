"""Safe handling of files: the inbox, the outbox, manifests, durable writes, paths that follow no link."""
