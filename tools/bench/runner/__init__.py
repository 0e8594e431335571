"""Runs the questions of ``tools/bench`` one after the other, and writes what they found."""
