"""From the plan of a save to files and the commit. Imported by what writes checkpoints or safetensors."""
