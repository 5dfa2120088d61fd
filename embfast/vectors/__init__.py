"""Vectors: keys and their rows, with lookup, search, statistics and plots."""
