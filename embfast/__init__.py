"""Embeddings of words, documents, graphs and images, trained near the speed of the hardware."""

from importlib import import_module

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

_HOMES = {  # __init__.pyi says the same to type checkers and editors
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
