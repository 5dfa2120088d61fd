"""Use of a trained joint space: embeddings of images and texts, nearest-neighbour search, retrieval scores, ONNX files.

Sources: Kiros et al. 2014, arXiv:1411.2539 (search in both directions, regularities); Vendrov et al. 2016,
arXiv:1511.06361 (order similarity).
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from embfast.evaluate.retrieval import Retrieval, retrieval, similarities
from embfast.files.durable import FilePath
from embfast.files.texts import Texts
from embfast.multimodal.captions import Captions, Linked, encode, tokenize
from embfast.multimodal.examples import CAPTIONS, IMAGES, Examples, Rows, Words, check_finite
from embfast.training.estimator import Estimator
from embfast.training.settings import check_int, plain
from embfast.vectors.vectors import Vectors

if TYPE_CHECKING:
    import torch

    from embfast.documents.doc2vec import Doc2Vec

_EMBEDDED_TOGETHER = 512  # items that pass through a tower in one call


class JointSpace(Estimator):
    """The methods of Multimodal that need its towers but do not train them."""

    dim: int
    text: str
    loss: str
    similarity: str
    precision: str
    max_words: int
    towers_: "torch.nn.ModuleDict"
    document_model_: "Doc2Vec | None"
    vectors_: Vectors
    _kinds: dict[str, str]  # modality: "texts" or "rows"
    _n_in: dict[str, int]  # modality: vector size of its rows
    _device: "torch.device"
    _texts: Texts  # captions given to fit
    _text_rows: np.ndarray | None  # their embeddings, once a search has needed them

    # ---- embedding ------------------------------------------------------------------------------------------------

    def embed_images(self, images: Any, keys: Iterable[str] | None = None) -> Vectors:
        """Embeds images in the joint space: all of them, or those with the given keys.

        images: Vectors as in fit, or an array (n, dim_in).
        """
        self._check_fitted()
        return self._embed_rows(IMAGES, images, keys)

    def embed_other(self, name: str, vectors: Any) -> Vectors:
        """Embeds rows of another modality, named as in fit ("captions" if the captions were Linked rows)."""
        self._check_fitted()
        if name not in self._kinds or self._kinds[name] == "texts":
            raise ValueError(f"no modality of rows is called {name!r}; expected one of {', '.join(self._kinds)}")
        return self._embed_rows(name, vectors, None)

    def _embed_rows(self, name: str, vectors: Any, keys: Iterable[str] | None) -> Vectors:
        if isinstance(vectors, np.ndarray):
            vectors = np.atleast_2d(vectors)
            vectors = Vectors([str(i) for i in range(len(vectors))], vectors)
        if not isinstance(vectors, Vectors):
            raise TypeError(f"{name}: expected Vectors or an array, got {type(vectors).__name__}")
        keys = list(vectors.keys) if keys is None else list(keys)
        rows = np.fromiter((vectors.index_of(key) for key in keys), np.int64, len(keys))
        side = Rows(vectors, rows)
        check_finite(vectors, rows, name)
        if side.dim != self._n_in[name]:
            raise ValueError(f"{name}: expected vectors of size {self._n_in[name]}, as in fit, got {side.dim}")
        return Vectors(keys, self._embed(name, side))

    def embed_captions(self, texts: "str | Iterable[str] | Captions") -> np.ndarray:
        """Embeds texts in the joint space, float32 (texts, dim).

        Words that are not in words_ are read as <unk>; an empty text is read as <end> alone.
        """
        self._check_fitted()
        if self._kinds[CAPTIONS] != "texts":
            raise ValueError("this model was trained on rows instead of captions and reads no text; see embed_other")
        texts = texts.texts if isinstance(texts, Captions) else [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, Texts):
            texts = list(texts)
            wrong = next((text for text in texts if not isinstance(text, str)), None)
            if wrong is not None or None in texts:
                raise TypeError(f"expected texts of type str, got {wrong!r}")
        return self._embed(CAPTIONS, self._read(texts))

    def _read(self, texts: Iterable[str]) -> Words | Rows:
        """Converts texts to the input of the caption tower."""
        if self.text == "doc2vec":
            assert self.document_model_ is not None  # fit requires it for this setting
            rows = self.document_model_.infer([tokenize(text) for text in texts])
            return Rows(Vectors([str(i) for i in range(len(rows))], rows), np.arange(len(rows)))
        index = {word: i for i, word in enumerate(self.words_)}
        return Words(*encode(texts, index, self.max_words))

    @property
    def device_(self) -> str:
        """The device that holds the weights."""
        self._check_fitted()
        return str(self._device)

    @property
    def _space_dim(self) -> int:
        return self._n_in[IMAGES] if self.loss == "mse" else self.dim

    def _embed(self, name: str, side: Words | Rows) -> np.ndarray:
        """Embeds all items of a modality, float32 (items, dim)."""
        import torch

        result = np.empty((len(side.rows), self._space_dim), np.float32)
        order = np.argsort(side.lengths, kind="stable") if side.lengths is not None else np.arange(len(side.rows))
        self.towers_.eval()
        with torch.inference_mode():
            for lo in range(0, len(order), _EMBEDDED_TOGETHER):
                items = order[lo : lo + _EMBEDDED_TOGETHER]
                result[items] = self._project(name, side, side.rows[items]).cpu().numpy()
        return result

    def _project(self, name: str, side: Words | Rows, rows: np.ndarray) -> "torch.Tensor":
        """Passes rows of a modality through its tower, into the joint space."""
        import torch

        from embfast.multimodal.towers import into_space

        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            projected = self.towers_[name](side.take(rows, self._device))
        return projected.float() if self.loss == "mse" else into_space(projected, self.similarity == "order")

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(
        self, images: Any, captions: Captions | Linked, folds: int = 1, *, missing: str = "error"
    ) -> Retrieval:
        """Scores the retrieval of captions by images and of images by captions; `missing` as in fit."""
        self._check_fitted()
        return self._evaluate(Examples(images, captions, {}, missing, self._read), folds)

    def _evaluate(self, data: Examples, folds: int = 1) -> Retrieval:
        images = self._embed(IMAGES, Rows(data.images, data.image_rows))
        captions = self._embed(CAPTIONS, data.sides[CAPTIONS])
        return retrieval(images, captions, data.owners, self.similarity, folds)

    # ---- search ---------------------------------------------------------------------------------------------------

    def search_images(self, text: "str | np.ndarray", k: int = 10, *, index: Any = None) -> list[tuple[str, float]]:
        """Returns keys and scores of the k images in vectors_ nearest to a text, best first.

        text: a text, or a vector of the joint space.
        index: an index from vectors_.build_index(), for approximate search by cosine.
        """
        self._check_fitted()
        query = self.embed_captions(text)[0] if isinstance(text, str) else np.asarray(text, np.float32)
        return self._nearest(self.vectors_, query, k, as_captions=True, index=index)

    def search_captions(
        self, image: "str | np.ndarray", k: int = 10, *, captions: Captions | Iterable[str] | None = None
    ) -> list[tuple[str, float]]:
        """Returns the k captions nearest to an image and their scores, best first.

        image: a key of vectors_, or an input vector of the image tower.
        captions: texts to search. Default: all captions given to fit, of every split, embedded at the first call.
        """
        self._check_fitted()
        query = self.vectors_[image] if isinstance(image, str) else self.embed_images(np.asarray(image)).matrix[0]
        if captions is not None:
            texts = captions.texts if isinstance(captions, Captions) else list(captions)
            rows = self.embed_captions(texts)
        else:
            if not len(self._texts):
                raise ValueError("this model holds no captions to search: pass captions=")
            if self._text_rows is None:
                self._text_rows = self.embed_captions(self._texts)
            texts, rows = self._texts, self._text_rows
        found = self._nearest(Vectors([str(i) for i in range(len(rows))], rows), query, k, as_captions=False)
        return [(texts[int(i)], score) for i, score in found]

    def regularity(self, image: str, minus: str, plus: str, k: int = 10) -> list[tuple[str, float]]:
        """Returns the k images nearest by cosine to image - minus + plus, without the image itself.

        `minus` and `plus` are words (Kiros et al. 2014).
        """
        self._check_fitted()
        words = self.embed_captions([plus, minus])
        return self.vectors_.most_similar([image, words[0]], [words[1]], k=k)

    def _nearest(
        self, gallery: Vectors, query: np.ndarray, k: int, *, as_captions: bool, index: Any = None
    ) -> list[tuple[str, float]]:
        """as_captions: the query is a caption and the gallery holds images; otherwise the reverse."""
        check_int("k", k, 0, 2**62)
        if not len(gallery):
            raise ValueError("this model holds no images to search: add some with index(images)")
        if self.similarity != "order" or index is not None:
            return gallery.most_similar(query, k=k, index=index)
        if as_captions:
            scores = similarities(np.asarray(gallery.matrix), query[None], "order")[:, 0]
        else:
            scores = similarities(query[None], np.asarray(gallery.matrix), "order")[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return [(gallery.keys[i], float(scores[i])) for i in best]

    def index(self, images: Any, keys: Iterable[str] | None = None) -> "JointSpace":
        """Replaces vectors_, the images to search, by embeddings of other images. Returns self."""
        self.vectors_ = self.embed_images(images, keys)
        return self

    # ---- export ---------------------------------------------------------------------------------------------------

    def save_onnx(self, path: FilePath, side: str = CAPTIONS) -> None:
        """Writes one tower, including the projection into the joint space, as an ONNX file.

        With side="captions" the inputs are `ids`, int64 (longest, n), one text per column with arbitrary padding after
        its end, and `lengths`, int32 (n,). captions.encode converts texts to ids; the file's metadata holds words_ as a
        JSON list. For any other side the input is `rows`, float32 (n, vector size). The output is `vectors`, float32
        (n, dim).

        Raises:
            ImportError: onnx is not installed.
            ValueError: the modality is unknown or has no tower, as images with loss="mse".
        """
        from embfast.multimodal import onnx

        self._check_fitted()
        if side not in self._kinds or (side == IMAGES and self.loss == "mse"):
            raise ValueError(f"no tower {side!r} to write; modalities are {', '.join(self._kinds)}")
        tower, absolute = self.towers_[side], self.similarity == "order"
        metadata = {"settings": json.dumps(plain(self.get_params()))}
        if type(tower).__name__ == "VectorTower":
            onnx.write_rows(path, tower, self._n_in[side], self._space_dim, self.loss != "mse", absolute, metadata)
        else:
            metadata |= {"words": json.dumps(self.words_), "max_words": str(self.max_words)}
            onnx.write_texts(path, tower, self._space_dim, self.loss != "mse", absolute, metadata)
