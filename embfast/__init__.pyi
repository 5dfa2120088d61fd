# The public names, for type checkers and editors: what __getattr__ of __init__.py finds by _HOMES.
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

__version__: str
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
