# Types of what csrc/*/bindings.cpp export. A kernel changes the arrays that its header names, in place.

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TextFailure = tuple[str, int, int, int, bytes]  # fault, offset, document, errno, first bytes of the token
_EdgeFailure = tuple[str, int, int, int, bytes]  # fault, line, columns found, columns expected, first bytes

def isa() -> str: ...

# csrc/text
class TextEncoder:
    def __init__(
        self,
        *,
        n_threads: int,
        block_bytes: int,
        memory_bytes: int,
        spill_fd: int,
        errors: str,
        max_distinct: int,
        tokens: bool,
        pruning: bool,
    ) -> None: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def n_newlines(self) -> int: ...
    def set_words(self, words: list[str]) -> None: ...
    def add_file(self, fd: int, begin: int, end: int, size: int) -> _TextFailure | None: ...
    def add_bytes(self, bytes: bytes | bytearray | memoryview | np.ndarray) -> _TextFailure | None: ...
    def add_sentences(
        self, sentences: Iterator[Iterable[str]], first_number: int, n_bytes: int
    ) -> tuple[bool, _TextFailure | None]: ...
    def end_source(self) -> _TextFailure | None: ...
    def select(
        self, min_count: int, max_vocab: int, keep: list[str], fixed: bool
    ) -> tuple[list[str], NDArray[np.int64], int, int, int]: ...
    def write(self, ids: np.ndarray, offsets: np.ndarray) -> bool: ...

def parse_lines(
    text: bytes, dim: int, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32]]: ...
def format_lines(keys: list[bytes] | None, rows: np.ndarray, separator: str, threads: int) -> bytes: ...

# csrc/sequences
sequence_job: np.dtype[np.void]
max_centers: int

class NoiseTable:
    def __init__(self, weights: np.ndarray) -> None: ...
    def __len__(self) -> int: ...
    @property
    def thresholds(self) -> NDArray[np.uint32]: ...
    @property
    def aliases(self) -> NDArray[np.int32]: ...
    def sample(self, n: int, seed: int, epoch: int, first: int = 0) -> NDArray[np.int32]: ...

class HuffmanTree:
    def __init__(self, counts: np.ndarray) -> None: ...
    def __len__(self) -> int: ...
    @property
    def offsets(self) -> NDArray[np.int64]: ...
    @property
    def nodes(self) -> NDArray[np.int32]: ...
    @property
    def codes(self) -> NDArray[np.uint8]: ...

def train_sequences(
    job: np.ndarray, arrays: Mapping[str, Any], first_block: int, last_block: int, threads: int
) -> tuple[float, int, int]: ...
def infer_documents(
    job: np.ndarray, arrays: Mapping[str, Any], epochs: int, averaged: int, threads: int
) -> tuple[float, int, int]: ...

# csrc/cooccurrence
entry: np.dtype[np.void]

class CooccurrenceCounter:
    bytes_per_token: int
    def __init__(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        *,
        n_words: int,
        window: int,
        symmetric: bool,
        distance_weighting: bool,
        threads: int,
        buffer_bytes: int,
        spill_fd: int,
        out_fd: int,
        out_begin: int,
    ) -> None: ...
    @property
    def n_entries(self) -> int: ...
    @staticmethod
    def bytes_per_thread(n_words: int) -> int: ...
    @staticmethod
    def bytes_of_words(n_words: int) -> int: ...
    def start(self, begin: int, end: int, only: bool) -> None: ...
    def count(self, first: int) -> int: ...
    def merge(self, first: int) -> int: ...

# csrc/glove
glove_job: np.dtype[np.void]

def group_entries(
    entries: np.ndarray,
    place: np.ndarray,
    *,
    n_rows: int,
    tile: int,
    n_groups: int,
    seed: int,
    groups: np.ndarray,
    grouped: np.ndarray,
) -> int: ...
def random_order(n: int, seed: int, epoch: int) -> NDArray[np.int32]: ...
def train_entries(
    job: np.ndarray,
    *,
    w_in: np.ndarray,
    w_out: np.ndarray,
    sums_in: np.ndarray,
    sums_out: np.ndarray,
    entries: np.ndarray,
    groups: np.ndarray,
    order: np.ndarray,
    threads: int,
) -> tuple[float, int]: ...

# csrc/graph
class EdgeReader:
    def __init__(self, *, weights: str, numbered: int, first_line: int) -> None: ...
    @property
    def weighted(self) -> bool: ...
    def add_bytes(self, bytes: bytes | bytearray | memoryview | np.ndarray) -> _EdgeFailure | None: ...
    def end(self) -> _EdgeFailure | None: ...
    def take(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]: ...
    def names(self) -> bytes: ...

def csr(
    sources: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None,
    *,
    n_nodes: int,
    both_ways: bool,
    keep_first: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32] | None, int, tuple[int, int]]: ...
def asymmetric_entry(
    offsets: np.ndarray, neighbours: np.ndarray, weights: np.ndarray | None
) -> tuple[int, int] | None: ...

# csrc/ternary
def ternary_levels(features: np.ndarray, low: np.ndarray, high: np.ndarray, levels: np.ndarray) -> int: ...
def ternary_pack(features: np.ndarray, low: np.ndarray, high: np.ndarray, planes: np.ndarray) -> int: ...
def ternary_unpack(planes: np.ndarray, levels: np.ndarray) -> None: ...
def ternary_nonzeros(planes: np.ndarray, nonzeros: np.ndarray) -> None: ...
def ternary_top(
    queries: np.ndarray,
    planes: np.ndarray,
    nonzeros: np.ndarray,
    *,
    excluded: np.ndarray | None,
    own: np.ndarray | None,
    first: int,
    ids: np.ndarray,
    keys: np.ndarray,
    threads: int,
) -> None: ...

# csrc/ranking
def order_scores(images: np.ndarray, captions: np.ndarray, scores: np.ndarray, *, threads: int) -> None: ...
def add_order_gradients(
    images: np.ndarray,
    captions: np.ndarray,
    weights: np.ndarray,
    to_images: np.ndarray | None,
    to_captions: np.ndarray | None,
    *,
    threads: int,
) -> None: ...
def hinges(
    scores: np.ndarray,
    row_bounds: np.ndarray | None,
    column_bounds: np.ndarray | None,
    row_active: np.ndarray | None,
    column_active: np.ndarray | None,
) -> float: ...
def hardest(
    scores: np.ndarray, axis: int, below: np.ndarray | None, first: int, best: np.ndarray, found: np.ndarray
) -> None: ...

# csrc/core
def fma_peak(seconds: float) -> float: ...
def read_bandwidth(numbers: np.ndarray, seconds: float) -> float: ...
