"""``s3torch bench``: what reading and writing reaches from here, and what bounds it."""
