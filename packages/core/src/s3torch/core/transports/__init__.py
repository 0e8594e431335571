"""The transports that s3torch ships, each a plugin."""
