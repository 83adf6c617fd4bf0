"""What an operator does beside the running daemon: check, audit, bag, demo."""
