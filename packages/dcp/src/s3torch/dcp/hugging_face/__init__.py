"""Safetensors files, and checkpoints in the layout of Hugging Face. Imported by the root and ``manage``."""
