"""Readers: S3 objects as binary files."""
