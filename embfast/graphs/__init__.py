"""Graphs, random walks on them, and node vectors."""
