"""Benchmarks for vectors of words and of graph nodes, and for retrieval between images and captions."""

from embfast.evaluate.graphs import (
    EdgeSplit,
    NodeClassification,
    edge_vectors,
    link_prediction,
    node_classification,
    read_labels,
    split_edges,
)
from embfast.evaluate.retrieval import Ranking, Retrieval, retrieval
from embfast.evaluate.words import Analogies, Section, Similarity, analogies, similarity

__all__ = [
    "Analogies",
    "EdgeSplit",
    "NodeClassification",
    "Ranking",
    "Retrieval",
    "Section",
    "Similarity",
    "analogies",
    "edge_vectors",
    "link_prediction",
    "node_classification",
    "read_labels",
    "retrieval",
    "similarity",
    "split_edges",
]
