"""``s3torch checkpoint`` and what ``s3torch gc`` looks for; only the plugin of this package imports it."""
