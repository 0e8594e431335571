"""``s3torch doctor``: what is set up here, what reaches the store, and what the store can do.

Each file looks at one side and yields findings. Nothing is written to the store unless that is asked for.
"""
