"""The disk cache and the lock between processes; imported by the datasets and by ``sources``."""
