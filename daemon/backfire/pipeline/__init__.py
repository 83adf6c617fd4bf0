"""One picture from its bytes to the bytes to publish."""
