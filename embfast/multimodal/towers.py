"""Towers that map vectors and texts into a joint space, as torch modules. Texts are packed, without padding.

Sources: Kiros et al. 2014, arXiv:1411.2539 (GRU and affine images); Vendrov et al. 2016, arXiv:1511.06361 (absolute
values for order); Dong et al. 2016, arXiv:1604.06838 (Word2VisualVec).
"""

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from embfast.vectors.vectors import Vectors


class Packed(NamedTuple):
    """Texts in the layout of torch's PackedSequence: all first words, longest text first, then all second words, ...

    ids: int64 (tokens,), word ids.
    texts: int64 (tokens,), the text that each token belongs to, numbered by decreasing length.
    batch_sizes: int64 (longest,), on the CPU, the number of texts that have a first, second, ... word.
    lengths: int64 (texts,), in decreasing order.
    place: int64 (texts,), the position in that order of each text as given.
    """

    ids: Tensor
    texts: Tensor
    batch_sizes: Tensor
    lengths: Tensor
    place: Tensor

    def to(self, device: torch.device) -> "Packed":
        """Moves the tensors to a device, except batch_sizes, which torch expects on the CPU."""
        if device.type == "cpu":
            return self
        return Packed(*(t if name == "batch_sizes" else t.to(device) for name, t in self._asdict().items()))


def pack(ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> Packed:
    """Packs the texts numbered `rows`; each needs at least one token."""
    lengths = offsets[rows + 1] - offsets[rows]
    order = np.argsort(-lengths, kind="stable")
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    lengths = lengths[order]
    step = np.arange(lengths[0])[:, None]
    inside = step < lengths
    tokens = (offsets[rows[order]] + step)[inside]
    return Packed(
        torch.from_numpy(ids[tokens].astype(np.int64)),
        torch.from_numpy(np.nonzero(inside)[1]),
        torch.from_numpy(inside.sum(1)),
        torch.from_numpy(lengths),
        torch.from_numpy(place),
    )


def into_space(rows: Tensor, absolute: bool) -> Tensor:
    """Normalises rows; absolute=True, for order embeddings, takes absolute values. Rows of zeros are kept."""
    rows = functional.normalize(rows.float(), dim=1)
    return rows.abs() if absolute else rows


class VectorTower(nn.Module):
    """An affine map, or with hidden > 0 an MLP with one hidden ReLU layer; rows may be float32 or int8."""

    def __init__(self, n_in: int, dim: int, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = [n_in, hidden, dim] if hidden else [n_in, dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.dropout = dropout

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows.float()
        for i, layer in enumerate(self.layers):
            rows = functional.relu(rows) if i else rows
            rows = layer(functional.dropout(rows, self.dropout, self.training))
        return rows


class IdentityTower(nn.Module):
    """Passes rows through unchanged, as float32."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.float()


class SequenceTower(nn.Module):
    """A GRU or LSTM over word vectors. bidirectional=True averages the states of both directions, of size `dim` each.

    pooling: "last" takes the state after the last word, "max" and "mean" pool the states after all words.
    """

    def __init__(
        self,
        n_words: int,
        word_dim: int,
        dim: int,
        cell: str = "gru",
        pooling: str = "last",
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.words = _word_table(n_words, word_dim)
        self.cell = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](word_dim, dim, bidirectional=bidirectional)
        self.pooling, self.dropout, self.dim = pooling, dropout, dim

    def forward(self, texts: Packed) -> Tensor:
        words = functional.dropout(self.words(texts.ids), self.dropout, self.training)
        states, last = self.cell(PackedSequence(words, texts.batch_sizes))
        if self.pooling == "last":
            rows = (last[0] if isinstance(last, tuple) else last).mean(0)
        else:
            states = states.data.unflatten(1, (-1, self.dim)).mean(1)
            rows = _pooled(states, texts, self.pooling)
        return rows[texts.place]


class MeanTower(nn.Module):
    """An affine map, or an MLP, over the mean word vector of a text."""

    def __init__(self, n_words: int, word_dim: int, dim: int, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = _word_table(n_words, word_dim)
        self.map = VectorTower(word_dim, dim, hidden, dropout)

    def forward(self, texts: Packed) -> Tensor:
        return self.map(_pooled(self.words(texts.ids), texts, "mean"))[texts.place]


class Word2VisualVecTower(nn.Module):
    """An MLP over three encodings of a text: last state of a GRU, mean word vector and bag of words."""

    def __init__(
        self, n_words: int, word_dim: int, dim: int, hidden: int = 2048, state: int = 1024, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.words = _word_table(n_words, word_dim)
        self.cell = nn.GRU(word_dim, state)
        self.bag = nn.Embedding(n_words, hidden)
        nn.init.uniform_(self.bag.weight, -0.02, 0.02)
        self.read = VectorTower(state + word_dim, hidden)
        self.out = VectorTower(hidden, dim)
        self.dropout = dropout

    def forward(self, texts: Packed) -> Tensor:
        words = self.words(texts.ids)
        state = self.cell(PackedSequence(words, texts.batch_sizes))[1][0]
        mean = _pooled(words, texts, "mean")
        bag = _pooled(self.bag(texts.ids), texts, "sum")
        hidden = functional.relu(self.read(torch.cat([state, mean], 1)) + bag)
        hidden = functional.dropout(hidden, self.dropout, self.training)
        return self.out(hidden)[texts.place]


def text_tower(n_words: int, word_dim: int, dim: int, settings: dict[str, Any]) -> nn.Module:
    """Makes the caption tower that Multimodal's settings name, for n_words words and a joint space of size dim."""
    hidden, dropout = settings["hidden"], settings["dropout"]
    if settings["text"] == "mean":
        return MeanTower(n_words, word_dim, dim, hidden, dropout)
    if settings["text"] == "word2visualvec":
        return Word2VisualVecTower(n_words, word_dim, dim, hidden or 2048, settings["dim"], dropout)
    cell = (settings["text"], settings["pooling"], settings["bidirectional"])
    return SequenceTower(n_words, word_dim, dim, *cell, dropout)


def place_words(tower: nn.Module, words: list[str], vectors: Vectors) -> None:
    """Sets the word vectors of a tower to given ones, for the words that these contain."""
    if not hasattr(tower, "words"):
        raise ValueError("word_vectors: the tower of the captions has no word vectors")
    known = [i for i, word in enumerate(words) if word in vectors]
    if not known:
        raise ValueError("word_vectors contain no word of the captions; are their words lower-cased?")
    table = tower.words.weight
    with torch.no_grad():
        table[known] = torch.from_numpy(vectors[[words[i] for i in known]]).to(table)


def _word_table(n_words: int, word_dim: int) -> nn.Embedding:
    table = nn.Embedding(n_words, word_dim)
    nn.init.uniform_(table.weight, -0.1, 0.1)
    return table


def _pooled(rows: Tensor, texts: Packed, how: str) -> Tensor:
    """Pools the rows of each text, (texts, dim), longest text first."""
    empty = rows.new_zeros(len(texts.lengths), rows.shape[1])
    if how == "max":
        place = texts.texts[:, None].expand_as(rows)
        return empty.scatter_reduce(0, place, rows, "amax", include_self=False)
    sums = empty.index_add(0, texts.texts, rows)
    return sums / texts.lengths[:, None] if how == "mean" else sums


# ---- optimisers ---------------------------------------------------------------------------------------------------


def make_optimizer(name: str, weights: list[Tensor], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Makes an optimiser by its name in torch.optim, fused if torch supports that."""
    known = {name.lower(): value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    kind = known.get(str(name).lower())
    if kind in (None, torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam):
        raise ValueError(f"optimizer: expected one of torch.optim, such as 'adam', got {name!r}")
    taken = inspect.signature(kind).parameters
    options: dict[str, Any] = {"lr": lr}
    if weight_decay or "weight_decay" in taken:
        options["weight_decay"] = weight_decay
    if "fused" in taken:
        try:
            return kind(weights, fused=True, **options)
        except RuntimeError:  # before torch 2.4 some devices lack it; the unfused form takes the same steps
            pass
    try:
        return kind(weights, **options)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"optimizer {name!r}: {error}") from None


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """The state of an optimiser: per weight, numbers and shapes of arrays; and the arrays, float32, as weight.name."""
    entries: dict[str, dict[str, Any]] = {}
    arrays = {}
    for i, entry in optimizer.state_dict()["state"].items():
        entries[str(i)] = {}
        for name, value in entry.items():
            if isinstance(value, Tensor):
                arrays[f"{i}.{name}"] = np.atleast_1d(value.detach().cpu().float().numpy())
                value = {"shape": list(value.shape)}
            entries[str(i)][name] = value
    return entries, arrays


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    entries: dict[str, dict[str, Any]],
    read: Callable[[str, tuple[int, ...]], np.ndarray],
) -> None:
    """Restores what optimizer_state returned; read(name, shape) returns an array."""

    def value_of(i: str, name: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return torch.from_numpy(read(f"{i}.{name}", tuple(value["shape"]) or (1,)).reshape(value["shape"]))

    state = {int(i): {name: value_of(i, name, value) for name, value in entry.items()} for i, entry in entries.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
