"""Objects with many samples: formats, archives, and their datasets; imports all else of this package."""
