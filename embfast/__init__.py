"""Embeddings of words, documents, graphs and images, trained near the speed of the hardware."""

__version__ = "0.1.0"
