"""From the plan of a load to filled tensors. Imported by the storage readers only."""
