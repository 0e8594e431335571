"""The transfer engine: parts, order, windows and checks."""
