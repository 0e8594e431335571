"""Lists, searches, copies and deletes: what a client does besides moving bytes; the client imports it."""
