"""Embeddings of words, documents, graphs and images, trained near the speed of the hardware."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "LINE",
    "Captions",
    "CooccurrenceMatrix",
    "Corpus",
    "Doc2Vec",
    "FullNetworkEmbedding",
    "GloVe",
    "Graph",
    "LayerEmbedding",
    "Linked",
    "Multimodal",
    "Node2Vec",
    "Phrases",
    "Tags",
    "TernaryMatrix",
    "Vectors",
    "Word2Vec",
    "evaluate",
    "read_tagged",
]

_HOMES = {
    "Captions": "multimodal.captions",
    "CooccurrenceMatrix": "words.cooccurrence",
    "Corpus": "text.corpus",
    "Doc2Vec": "documents.doc2vec",
    "FullNetworkEmbedding": "images.embeddings",
    "GloVe": "words.glove",
    "Graph": "graphs.graph",
    "LayerEmbedding": "images.embeddings",
    "LINE": "graphs.line",
    "Linked": "multimodal.captions",
    "Multimodal": "multimodal.model",
    "Node2Vec": "graphs.node2vec",
    "Phrases": "text.phrases",
    "read_tagged": "documents.tagged",
    "Tags": "text.tags",
    "TernaryMatrix": "files.ternary",
    "Vectors": "vectors.vectors",
    "Word2Vec": "words.word2vec",
}

if TYPE_CHECKING:  # what __getattr__ finds by _HOMES, for type checkers and editors
    from embfast import evaluate
    from embfast.documents.doc2vec import Doc2Vec
    from embfast.documents.tagged import read_tagged
    from embfast.files.ternary import TernaryMatrix
    from embfast.graphs.graph import Graph
    from embfast.graphs.line import LINE
    from embfast.graphs.node2vec import Node2Vec
    from embfast.images.embeddings import FullNetworkEmbedding, LayerEmbedding
    from embfast.multimodal.captions import Captions, Linked
    from embfast.multimodal.model import Multimodal
    from embfast.text.corpus import Corpus
    from embfast.text.phrases import Phrases
    from embfast.text.tags import Tags
    from embfast.vectors.vectors import Vectors
    from embfast.words.cooccurrence import CooccurrenceMatrix
    from embfast.words.glove import GloVe
    from embfast.words.word2vec import Word2Vec


def __getattr__(name: str) -> object:
    """Loads a class or module at its first use, so that `import embfast` costs next to nothing."""
    if name in _HOMES:
        value = getattr(import_module(f"embfast.{_HOMES[name]}"), name)
    elif name == "evaluate":
        value = import_module("embfast.evaluate")
    else:
        raise AttributeError(f"module 'embfast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
