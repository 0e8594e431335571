"""Which objects there are: prefixes, globs, manifests and shared listings; imports nothing but ``cache``."""
