"""Which worker reads what in which order, and how an epoch resumes; imports nothing else of this package."""
