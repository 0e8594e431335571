"""The names of ``s3torch.core._memory`` at their former place."""

from s3torch.core._memory import Memory, MemoryBudget, default_memory_limit, new_bytes

__all__ = ["Memory", "MemoryBudget", "default_memory_limit", "new_bytes"]
