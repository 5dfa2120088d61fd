"""Phrases compared with the original word2phrase, and with plain Python twins of it and of gensim's rules."""

import math
import shutil
import subprocess
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embfast.text.phrases
from embfast.text.corpus import Corpus
from embfast.text.phrases import ENGLISH_CONNECTORS, Phrases


@pytest.mark.parametrize("make", [iter, list, np.array])
def test_connectors_of_any_kind(make):
    corpus = Corpus.from_sentences([["bank", "of", "america"], ["bank", "america", "of"]] * 9)
    phrases = Phrases(min_count=5, threshold=0.1, connectors=make(["of", "the"]))
    joined = phrases.fit_transform(corpus)
    assert ("bank", "of", "america") in phrases.phrases_
    assert list(phrases.transform(corpus)) == list(joined)


def test_only_a_corpus_has_phrases():
    phrases = Phrases()
    with pytest.raises(TypeError, match="expected a Corpus, got list; see"):
        phrases.fit([["a", "b"]])
    with pytest.raises(TypeError, match="expected a Corpus, got list"):
        phrases.fit(Corpus.from_sentences([["a", "b"]])).transform([["a", "b"]])


def default_score(together, a, b, min_count, n_tokens):
    return (together - min_count) / a / b * n_tokens


def npmi_score(together, a, b, min_count, n_tokens):
    if together < min_count:
        return -math.inf
    return math.log((together / n_tokens) / ((a / n_tokens) * (b / n_tokens))) / -math.log(together / n_tokens)


def twin(sentences, min_count, threshold, score, connectors=frozenset(), delimiter="_"):
    """gensim's Phrases, one token at a time: phrase scores, and the sentences with phrases joined."""
    n_tokens = sum(map(len, sentences))
    single = Counter(token for sentence in sentences for token in sentence)
    pairs = Counter()
    for sentence in sentences:
        start, between = None, []
        for token in sentence:
            if token not in connectors:
                if start is not None:
                    pairs[(start, *between, token)] += 1
                start, between = token, []
            elif start is not None:
                between.append(token)
    scores = {}
    for phrase, together in pairs.items():
        if together >= min_count:
            value = score(together, single[phrase[0]], single[phrase[-1]], min_count, n_tokens)
            if value > threshold:
                scores[phrase] = value
    joined = []
    for sentence in sentences:
        result, start, between = [], None, []
        for token in sentence:
            if token in connectors:
                (between if start is not None else result).append(token)
            elif start is None:
                start = token
            elif (start, *between, token) in scores:
                result.append(delimiter.join([start, *between, token]))
                start, between = None, []
            else:
                result += [start, *between]
                start, between = token, []
        joined.append(result + ([start, *between] if start is not None else []))
    return scores, joined


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sentences=st.lists(
        st.lists(st.sampled_from("abcd") | st.sampled_from(["of", "the", "a_b"]), max_size=25), max_size=12
    ),
    chunk=st.sampled_from([2, 3, 5, 1 << 20]),
    min_count=st.integers(1, 3),
    scoring=st.sampled_from([("default", 0.317), ("default", 1.043), ("npmi", -0.97), ("npmi", 0.117)]),
    connectors=st.sampled_from([frozenset(), ENGLISH_CONNECTORS, frozenset({"of", "d", "absent"})]),
)
def test_any_text_equals_the_twin(sentences, chunk, min_count, scoring, connectors):
    if not any(sentences):
        return
    corpus = Corpus.from_sentences(sentences)
    name, threshold = scoring
    score = {"default": default_score, "npmi": npmi_score}[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embfast.text.phrases, "_CHUNK_TOKENS", chunk)
        model = Phrases(min_count=min_count, threshold=threshold, scoring=name, connectors=connectors)
        result = model.fit_transform(corpus)
    scores, joined = twin(sentences, min_count, threshold, score, connectors)
    assert model.phrases_ == pytest.approx(scores)
    assert list(model.phrases_.values()) == sorted(model.phrases_.values(), reverse=True)
    assert list(result) == joined
    fresh = Corpus.from_sentences(joined)
    assert result.words == fresh.words
    np.testing.assert_array_equal(result.counts, fresh.counts)
    np.testing.assert_array_equal(result.ids, fresh.ids)
    np.testing.assert_array_equal(result.offsets, fresh.offsets)


def zipf_text(seed, lines):
    rng = np.random.default_rng(seed)
    pairs = [(f"left{i}", f"right{i}") for i in range(40)]
    for number in range(lines):
        line = []
        for i in rng.zipf(1.4, 30):
            line += pairs[i % 40] if rng.random() < 0.2 else [f"w{i % 500}"]
            line += ["one", "two", "three"] if rng.random() < 0.01 else []
        yield [*line, f"end{number}"]  # a unique last word, since word2phrase pairs it with the first of the next line


def test_two_passes_equal_the_original_tool(tmp_path):
    tool = shutil.which("word2phrase")
    if tool is None:
        pytest.skip("word2phrase, the original C program, is not on PATH (pip install word2vec builds it)")
    (tmp_path / "pass0").write_text("".join(" ".join(line) + "\n" for line in zipf_text(0, 3000)))
    corpus = Corpus.from_file(tmp_path / "pass0", min_count=1)
    for number, threshold in ((1, 20.03), (2, 5.03)):
        subprocess.run(
            [
                tool,
                "-train",
                f"pass{number - 1}",
                "-output",
                f"pass{number}",
                "-threshold",
                str(threshold),
                "-debug",
                "0",
            ],
            cwd=tmp_path,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        theirs = [line.split() for line in (tmp_path / f"pass{number}").read_text().split("\n")[:-1]]
        before = corpus
        corpus = Phrases(min_count=5, threshold=threshold).fit_transform(corpus)
        assert corpus.words != before.words
        assert list(corpus) == theirs
        assert any(word.count("_") == number for word in corpus.words)


def test_transform_of_another_corpus():
    model = Phrases(min_count=1, threshold=0.5).fit(Corpus.from_sentences([["x", "y"], ["p", "of", "q"]] * 3))
    other = Corpus.from_sentences([["q", "y", "x", "y", "x"], ["x"], [], ["of", "q"]])
    assert list(model.transform(other)) == [["q", "y", "x_y", "x"], ["x"], [], ["of_q"]]


def test_settings():
    corpus = Corpus.from_sentences([["a", "b"]])
    for settings_, error, message in (
        ({"min_count": 0}, ValueError, "min_count must be positive"),
        ({"scoring": "pmi"}, ValueError, 'must be "default" or "npmi"'),
        ({"threshold": -1}, ValueError, "0 to inf"),
        ({"threshold": 10, "scoring": "npmi"}, ValueError, "-1 to 1"),
        ({"connectors": "of"}, TypeError, "one str"),
    ):
        with pytest.raises(error, match=message):
            Phrases(**settings_).fit(corpus)
    with pytest.raises(ValueError, match="fit first"):
        Phrases().transform(corpus)


def test_a_word_joined_just_now_is_no_part_of_another_phrase():
    """Its number lies behind those of the text, where the key of a pair is that of other words."""
    phrases = Phrases(min_count=1)
    phrases.phrases_ = {("new", "york"): 1.0, ("b", "new_york"): 1.0}
    text = [["c"] * 5, ["new", "york"], ["b"], ["x", "c"]]  # ids 0 to 4: b and a word 5 have the key of x and c
    found = phrases.transform(Corpus.from_sentences(text, min_count=1))
    assert [[found.words[i] for i in found.ids[a:b]] for a, b in pairwise(found.offsets)] == [
        ["c"] * 5, ["new_york"], ["b"], ["x", "c"]
    ]  # fmt: skip
