"""Tell others when a picture is published or has failed: a webhook or a command."""
