"""Corpus compared with a plain Python twin and with the original word2vec, and its errors for bad input."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embfast.text.corpus
import embfast.text.sources
import embfast.text.storage
from embfast import kernels
from embfast.errors import FormatError
from embfast.text.corpus import Corpus
from embfast.text.vocabulary import read_vocab

DATA = Path(os.environ.get("EMBFAST_DATA", Path(__file__).parents[2] / "shared/data"))


def twin(raw, min_count=1, max_vocab=None, keep=(), vocab=None, max_sentence=None):
    """words, counts and documents (lists of ids) of a text in bytes, by the rules of word2vec.c's ReadWord."""
    lines = raw.replace(b"\r", b"").replace(b"\t", b" ").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    documents = [[t for t in line.decode().split(" ") if t not in ("", "</s>")] for line in lines]
    counts = Counter(token for document in documents for token in document)  # in order of first occurrence
    if vocab is None:
        order = sorted(counts, key=lambda word: -counts[word])  # stable
        words = [word for word in order if counts[word] >= min_count or word in keep]
        if max_vocab is not None:
            room = max_vocab - sum(word in keep for word in words)
            others = [word for word in words if word not in keep][: max(room, 0)]
            words = [word for word in words if word in keep or word in others]
    else:
        words = list(vocab)
    index = {word: i for i, word in enumerate(words)}
    encoded = [[index[token] for token in document if token in index] for document in documents]
    if max_sentence is not None:
        encoded = [d[i : i + max_sentence] for d in encoded for i in range(0, max(len(d), 1), max_sentence)]
    return words, [counts[word] for word in words], encoded


def as_twin(corpus):
    documents = [corpus.ids[a:b].tolist() for a, b in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)]
    return corpus.words, corpus.counts.tolist(), documents


def small_steps(monkeypatch, block, memory=1 << 28, chunk=3):
    """Small blocks, so that boundaries fall inside words; with memory=0, ids and results are on disk."""
    monkeypatch.setattr(embfast.text.sources, "BLOCK_BYTES", block)
    monkeypatch.setattr(embfast.text.sources, "SLICE_BYTES", 3 * block)
    monkeypatch.setattr(embfast.files.scratch, "MEMORY_BYTES", memory)
    monkeypatch.setattr(embfast.text.corpus, "_CHUNK_TOKENS", chunk)
    monkeypatch.setattr(embfast.text.corpus, "_CHUNK_DOCUMENTS", chunk)
    monkeypatch.setattr(embfast.text.encoding, "_CHUNK_DOCUMENTS", chunk)


TEXT = "the cat sat on the mat\n\nthe dog\tsat  on\r\nthe antidisestablishmentarianism of the </s> café\n".encode() * 3

texts = st.lists(
    st.one_of(
        st.sampled_from(
            ["a", "b", "cc", " ", " ", "\n", "\t", "\r", "</s>", "é", "x" * 15, "x" * 16, "x" * 17, "y" * 40]
        ),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    ),
    max_size=60,
).map(lambda parts: "".join(parts).encode())
ONCE = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@ONCE
@given(
    raw=texts,
    block=st.sampled_from([1, 2, 3, 7, 16, 64, 1 << 20]),
    threads=st.sampled_from([1, 2, 5]),
    memory=st.sampled_from([0, 1 << 28]),
    min_count=st.integers(0, 3),
    max_vocab=st.one_of(st.none(), st.integers(1, 4)),
    keep=st.lists(st.sampled_from(["a", "cc", "é", "absent"]), max_size=2, unique=True),
    max_sentence=st.one_of(st.none(), st.integers(1, 4)),
    way=st.sampled_from(["plain", "gz", "sentences"]),
)
def test_any_text_any_block_any_thread(
    raw, block, threads, memory, min_count, max_vocab, keep, max_sentence, way, tmp_path
):
    words, counts, documents = twin(raw, max(min_count, 1), max_vocab, keep, None, max_sentence)
    options = dict(min_count=min_count, max_vocab=max_vocab, keep=keep, max_sentence=max_sentence, threads=threads)
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(raw) if way == "gz" else raw)
    with pytest.MonkeyPatch.context() as patch:
        small_steps(patch, block, memory)
        if not words:
            with pytest.raises(ValueError, match="no word"):
                Corpus.from_file(path, **options)
            return
        if way == "sentences":
            lines = raw.replace(b"\r", b"").replace(b"\t", b" ").decode().split("\n")
            sentences = (line.split(" ") for line in (lines if lines[-1] else lines[:-1]))
            corpus = Corpus.from_sentences(sentences, **options)
        else:
            corpus = Corpus.from_file(path, **options)
        assert as_twin(corpus) == (words, counts, documents)
        assert len(corpus) == len(documents)
        corpus.save(tmp_path / "saved")
        assert as_twin(Corpus.load(tmp_path / "saved")) == (words, counts, documents)
        reversed_words = ["new", *words[::-1]]
        expected = [[len(words) - i for i in document] for document in documents]
        assert as_twin(corpus.with_words(reversed_words)) == (reversed_words, [0, *counts[::-1]], expected)
        assert as_twin(corpus.with_words(words[1:])) == (
            words[1:],
            counts[1:],
            [[i - 1 for i in d if i] for d in documents],
        )


@ONCE
@given(
    raw=st.lists(st.one_of(st.binary(max_size=6), st.sampled_from([b" ", b"\n", b"a", b"\xe2\x82", b"\xed\xa0\x80"]))),
    block=st.sampled_from([1, 5, 1 << 20]),
    threads=st.sampled_from([1, 3]),
)
def test_bytes_that_are_not_text(raw, block, threads, tmp_path):
    raw = b"a " + b"".join(raw)  # "a ", so that it is not a compressed file
    path = tmp_path / "bytes"
    path.write_bytes(raw)

    def mended(token, errors):
        try:
            text = token.decode()
        except UnicodeDecodeError:
            text = token.decode("utf-8", "replace") if errors == "replace" else ""
        return text.replace("\0", "\ufffd") if errors == "replace" else "" if "\0" in text else text

    tokens = raw.replace(b"\r", b"").replace(b"\t", b" ").replace(b"\n", b" \n ").split(b" ")
    with pytest.MonkeyPatch.context() as patch:
        small_steps(patch, block)
        for errors in ("replace", "skip"):
            fine = " ".join("\n" if t == b"\n" else mended(t, errors) for t in tokens).encode()
            if not twin(fine)[0]:
                continue
            corpus = Corpus.from_file(path, min_count=1, threads=threads, errors=errors)
            assert as_twin(corpus)[:2] == twin(fine)[:2]
        line = 1
        for token in tokens:
            line += token == b"\n"
            if token and not mended(token, "skip"):
                with pytest.raises(FormatError) as caught:
                    Corpus.from_file(path, min_count=1, threads=threads)
                assert str(caught.value).startswith(f"{path}:{line}: ")
                break


@pytest.mark.parametrize("threads", [1, 2])
def test_fixed_vocabulary(tmp_path, threads, monkeypatch):
    small_steps(monkeypatch, 8)
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    vocab = ["mat", "absent", "the", "</s>", "antidisestablishmentarianism"]
    corpus = Corpus.from_file(path, vocab=vocab, threads=threads)
    words, counts, documents = twin(TEXT, vocab=vocab)
    assert as_twin(corpus) == (words, counts, documents)
    with pytest.raises(ValueError, match="none of the 1 words of vocab occurs"):
        Corpus.from_file(path, vocab=["absent"])
    with pytest.raises(ValueError, match="1 repeated"):
        Corpus.from_file(path, vocab=["a", "a"])
    Corpus.from_file(path, min_count=2).save_vocab(tmp_path / "vocab")
    again = Corpus.from_file(path, vocab=tmp_path / "vocab")
    assert as_twin(again) == as_twin(Corpus.from_file(path, min_count=2))


def pruned_twin(raw, max_distinct):
    """Words that survive the pruning of word2vec.c when its table is full, in their final order."""
    counts, min_reduce = {}, 1
    for token in raw.split():
        counts[token] = counts.get(token, 0) + 1
        if len(counts) > max_distinct:
            counts = {word: count for word, count in counts.items() if count > min_reduce}
            min_reduce += 1
    return {word.decode(): count for word, count in counts.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threads", [1, 2])
def test_too_many_distinct_words_are_pruned_as_in_word2vec(tmp_path, seed, threads, monkeypatch):
    small_steps(monkeypatch, 64)
    rng = np.random.default_rng(seed)
    drawn = rng.zipf(1.3, 2000) % 400
    raw = b" ".join((b"w%d" if i % 3 else b"a-rather-long-word-number-%d") % i for i in drawn) + b"\n"
    path = tmp_path / "text"
    path.write_bytes(raw)
    survivors = pruned_twin(raw, 60)
    true = Counter(raw.decode().split())
    words = sorted((w for w in survivors if survivors[w] >= 2), key=lambda w: -true[w])
    corpus = Corpus.from_file(path, min_count=2, max_distinct=60, threads=threads)
    assert corpus.words == words
    assert as_twin(corpus) == twin(raw, vocab=words)
    with pytest.raises(ValueError, match="an iterator cannot be read twice"):
        Corpus.from_sentences(iter([raw.decode().split()]), max_distinct=60, threads=threads)
    assert Corpus.from_sentences([raw.decode().split()], min_count=2, max_distinct=60, threads=threads).words == words


def test_words_to_keep_survive_pruning():
    sentences = [["rare", *(f"w{i}" for i in range(50))]] + [["a", "b"]] * 9
    corpus = Corpus.from_sentences(sentences, min_count=5, keep=["rare", "absent"], max_distinct=4)
    assert (corpus.words, corpus.counts.tolist()) == (["a", "b", "rare"], [9, 9, 1])
    assert "absent" not in Corpus.from_sentences(sentences, min_count=0, keep=["absent"], max_distinct=4).words


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_words_that_several_threads_see_count_once(threads, monkeypatch):
    small_steps(monkeypatch, 64)
    sentences = [[f"w{i % 50}" for i in range(start, start + 10)] for start in range(1000)]
    corpus = Corpus.from_sentences(iter(sentences), max_distinct=50, threads=threads)
    assert list(corpus) == sentences
    with pytest.raises(ValueError, match="max_distinct=49 distinct words, and an iterator cannot be read twice"):
        Corpus.from_sentences(iter(sentences), max_distinct=49, threads=threads)


def test_a_source_that_cannot_be_read_twice_is_named(tmp_path):
    class Once:
        def __init__(self):
            self.left = iter([["a", "b", "c"]])

        def __iter__(self):
            yield from self.left

    with pytest.raises(ValueError, match="the sentences cannot be read twice"):
        Corpus.from_sentences(Once(), max_distinct=2)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"a b c",))
    writer.start()
    with pytest.raises(ValueError, match="pipe cannot be read twice"):
        Corpus.from_file(tmp_path / "pipe", max_distinct=2)
    writer.join()


@pytest.mark.parametrize("make", [iter, tuple, set, np.array])
def test_words_to_keep_of_any_kind(make):
    corpus = Corpus.from_sentences([["a", "a", "b"]], min_count=2, keep=make(["b", "c"]))
    assert corpus.words == ["a", "b"]


def original(name):
    tool = shutil.which(name)
    if tool is None:
        pytest.skip(f"{name}, the original C program, is not on PATH (pip install word2vec builds it)")
    return tool


def test_vocabulary_equals_the_original_tools(tmp_path):
    tool = original("word2vec")
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(3000)] + ["é" * 20, "x" * 90]
    lines = [" ".join(words[i % len(words)] for i in rng.zipf(1.2, rng.integers(0, 60))) for _ in range(2000)]
    raw = ("\n".join(lines) + "\n").replace(" w1 ", "\tw1  ").replace(" w2\n", " w2\r\n").encode()
    (tmp_path / "text").write_bytes(raw)
    subprocess.run([tool, "-train", "text", "-save-vocab", "theirs", "-min-count", "3"], cwd=tmp_path, check=True)
    corpus = Corpus.from_file(tmp_path / "text", min_count=3)
    corpus.save_vocab(tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    theirs = read_vocab(tmp_path / "theirs")
    assert theirs[0] == corpus.words
    np.testing.assert_array_equal(theirs[1], corpus.counts)


def test_real_text(tmp_path):
    source = DATA / "text-extra/factbook.txt.zst"
    if not source.exists():
        pytest.skip(f"{source} is not there; set EMBFAST_DATA")
    raw = zstandard.ZstdDecompressor().stream_reader(source.read_bytes()).read()
    assert as_twin(Corpus.from_file(source)) == twin(raw, min_count=5)


# Files ---------------------------------------------------------------------------------------------------------------


def compressed(kind, raw):
    if kind == "zst":
        skippable = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
        return (
            skippable + zstandard.compress(raw[:40]) + zstandard.ZstdCompressor(write_checksum=True).compress(raw[40:])
        )
    module = {"gz": gzip, "bz2": bz2, "xz": lzma}[kind]
    return module.compress(raw[:40]) + module.compress(b"") + module.compress(raw[40:])


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("ending", ["last word", "last word\n"])
def test_compressed_files_of_several_members(tmp_path, kind, ending, monkeypatch):
    small_steps(monkeypatch, 16)
    raw = TEXT * 50 + ending.encode()
    path = tmp_path / "named.txt"
    path.write_bytes(compressed(kind, raw))
    seen = []
    corpus = Corpus.from_file(path, min_count=1, threads=2, progress=lambda done, total: seen.append((done, total)))
    assert as_twin(corpus) == twin(raw)
    size = path.stat().st_size
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_damaged_compressed_files(tmp_path, kind):
    raw = np.random.default_rng(0).integers(97, 120, 300_000).astype(np.uint8).tobytes()
    raw = b" ".join(raw[i : i + 6] for i in range(0, len(raw), 6))
    whole = compressed(kind, raw)
    path = tmp_path / "cut"
    for size in (len(whole) - 1, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=rf"cut: the {kind} data are truncated"):
            Corpus.from_file(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(255 - b for b in whole[middle : middle + 2000]) + whole[middle + 2000 :])
    with pytest.raises(
        FormatError, match=rf"cut: expected {kind} data|cut: the {kind} data end|cut:\d+: bytes that are"
    ):
        Corpus.from_file(path)


def test_a_pipe_is_read_as_a_stream(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for data in (TEXT, gzip.compress(TEXT), b"a"):
        writer = threading.Thread(target=path.write_bytes, args=(data,))
        writer.start()
        corpus = Corpus.from_file(path, min_count=1)
        writer.join()
        assert as_twin(corpus) == twin(b"a" if data == b"a" else TEXT)
    with pytest.raises(ValueError, match="only regular files can be cached"):
        Corpus.from_file(path, cache=tmp_path / "cache")


def test_directories_and_lists_of_files(tmp_path):
    for name, text in {"b.txt": "b b", "a/z": "z\n\nz", "a/.hidden": "no", ".git/x": "no", "c": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    corpus = Corpus.from_file(tmp_path, min_count=1)
    assert list(corpus) == [["z"], [], ["z"], ["b", "b"]]
    assert list(Corpus.from_file([tmp_path / "b.txt", tmp_path / "a"], min_count=1)) == [["b", "b"], ["z"], [], ["z"]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no files in this directory"):
        Corpus.from_file(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="absent: no such file"):
        Corpus.from_file(tmp_path / "absent")
    with pytest.raises(ValueError, match="at least one file"):
        Corpus.from_file([])


def test_saved_corpora_in_a_directory_of_texts_are_skipped(tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    (tmp_path / "corpus.json").write_text("c")  # a file of the user
    for _ in range(2):
        corpus = Corpus.from_file(tmp_path, min_count=1, cache=tmp_path / "cache")
        assert corpus.words == ["a", "b", "c"]
    with pytest.raises(ValueError, match="saved corpora are skipped"):
        Corpus.from_file(tmp_path / "cache")


def test_files_without_enough_words(tmp_path):
    path = tmp_path / "text"
    for raw in (b"", b"\n\n \t\n", b"</s>\n"):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"no words in .*text"):
            Corpus.from_file(path)
    path.write_bytes(b"a b a\n")
    with pytest.raises(ValueError, match=r"min_count=5 times .* of 2 distinct words the most frequent occurs 2 times"):
        Corpus.from_file(path)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_bad_word_is_named_with_its_line(tmp_path, threads, monkeypatch):
    small_steps(monkeypatch, 16)
    good, path = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(TEXT)
    raw = b"fine\n\nalso fine caf\xe9 x\n" + b"more words\n" * 50 + b"\xff\n" + TEXT
    path.write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        Corpus.from_file([good, path], threads=threads)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: bytes that are not UTF-8 in the token b'caf\\xe9', at byte 16 ")
    assert 'errors="replace"' in message
    path.write_bytes(gzip.compress(TEXT + b"a\0b\n"))
    with pytest.raises(FormatError, match=rf"bad:{TEXT.count(10) + 1}: a NUL in the token b'a.x00b'"):
        Corpus.from_file(path, threads=threads)


def test_one_token_and_one_line_of_many_blocks(tmp_path, monkeypatch):
    small_steps(monkeypatch, 1 << 16)
    path = tmp_path / "text"
    token = b"y" * 5_000_000
    raw = b"a " + token + b" b\n" + b"word " * 500_000 + token
    path.write_bytes(raw)
    corpus = Corpus.from_file(path, min_count=1, threads=2)
    assert as_twin(corpus) == twin(raw)
    path.write_bytes(gzip.compress(raw, 1))
    assert as_twin(Corpus.from_file(path, min_count=1, threads=2)) == twin(raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_count": -1}, "min_count must be positive"),
        ({"max_vocab": 0}, "max_vocab must be positive"),
        ({"threads": 0}, "threads must be positive"),
        ({"max_sentence": 0}, "max_sentence must be positive"),
        ({"errors": "ignore"}, 'errors must be "strict"'),
        ({"max_distinct": 2**31}, "at most 2\\*\\*30"),
    ],
)
def test_bad_options(tmp_path, options, message):
    (tmp_path / "text").write_bytes(TEXT)
    with pytest.raises(ValueError, match=message):
        Corpus.from_file(tmp_path / "text", **options)


# Sentences and tables ------------------------------------------------------------------------------------------------


def test_sentences(monkeypatch):
    small_steps(monkeypatch, 8)
    sentences = [["New York", "tab\there", "line\nbreak", "cr\r"], [], ("café", "", "New York"), iter(["</s>", "é"])]
    corpus = Corpus.from_sentences(sentences, threads=2)
    assert list(corpus) == [["New York", "tab\there", "line\nbreak", "cr\r"], [], ["café", "New York"], ["é"]]
    assert corpus.words[0] == "New York"
    assert corpus[-1] == ["é"]
    with pytest.raises(IndexError):
        corpus[4]
    assert Corpus.from_sentences([["a"] * 7], max_sentence=3).offsets.tolist() == [0, 3, 6, 7]


def test_bad_sentences():
    with pytest.raises(TypeError, match=r"sentence 1: expected a list of str, got one str; split it first"):
        Corpus.from_sentences([["a"], "a b"])
    with pytest.raises(TypeError, match="got one str"):
        Corpus.from_sentences("a b")
    with pytest.raises(TypeError, match="sentence 0: expected str, got int as token 1"):
        Corpus.from_sentences([["a", 1]])
    with pytest.raises(TypeError, match="sentence 0: expected a list of str, got int"):
        Corpus.from_sentences([1])
    with pytest.raises(TypeError, match="not iterable"):
        Corpus.from_sentences(3)
    with pytest.raises(FormatError, match="sentence 1: a NUL in the token"):
        Corpus.from_sentences([["a"], ["b", "x\0y"]])
    with pytest.raises(FormatError, match="sentence 0: bytes that are not UTF-8"):
        Corpus.from_sentences([["\ud800"]])
    assert list(Corpus.from_sentences([["a", "\ud800"]], errors="skip")) == [["a"]]

    def breaks():
        yield ["a"]
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        Corpus.from_sentences(breaks())


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    texts = ["a b\nc", None, "", "a\r\n", "b  b\t", "é"] * 3
    tokens = [["New York", "a"], None, [], ["a", None, ""], ["b\n"], ["é"]] * 3
    table = pa.table(
        {
            "text": pa.array(texts),
            "large": pa.array(texts, pa.large_string()),
            "coded": pa.array(texts).dictionary_encode(),
            "tokens": pa.array(tokens),
            "n": list(range(18)),
        }
    )
    path = tmp_path / "table.parquet"
    pq.write_table(table, path, row_group_size=4)
    expected = [(text or "").split() for text in texts]
    seen = []
    for column in ("text", "large", "coded"):
        corpus = Corpus.from_parquet(path, column, min_count=1, progress=lambda *state: seen.append(state))
        assert list(corpus) == expected
        assert seen[-1] == (18, 18)
    assert (
        list(Corpus.from_parquet([path, path], "tokens", min_count=1))
        == [[t for t in d or [] if t] for d in tokens] * 2
    )
    with pytest.raises(KeyError, match="no column 'absent'; the file has 'text'"):
        Corpus.from_parquet(path, "absent")
    with pytest.raises(TypeError, match="column 'n' holds int64"):
        Corpus.from_parquet(path, "n")
    pq.write_table(pa.table({"text": ["a", "b\0"]}), path)
    with pytest.raises(FormatError, match="row 1: a NUL"):
        Corpus.from_parquet(path, "text")
    path.write_bytes(b"not parquet")
    with pytest.raises(FormatError, match="expected a Parquet file"):
        Corpus.from_parquet(path, "text")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install embfast\[parquet\]"):
        Corpus.from_parquet(tmp_path / "x", "text")


# Directories on disk -------------------------------------------------------------------------------------------------


def test_a_cache_is_reused_until_something_changes(tmp_path, monkeypatch):
    path, cache = tmp_path / "text", tmp_path / "cache"
    path.write_bytes(TEXT)
    passes = []
    encode = embfast.text.corpus.encode
    monkeypatch.setattr(embfast.text.corpus, "encode", lambda *a: passes.append(1) or encode(*a))

    def passes_for(**options):
        passes.clear()
        corpus = Corpus.from_file(path, cache=cache, **{"min_count": 2, **options})
        assert isinstance(corpus.ids, np.memmap)
        del options["threads"]
        fresh = twin(path.read_bytes(), **{"min_count": 2, **options})
        assert as_twin(corpus) == fresh
        return len(passes)

    assert passes_for(threads=1) == 1
    assert passes_for(threads=2) == 0
    for options in (
        {"min_count": 1},
        {"max_vocab": 2},
        {"keep": ["café"]},
        {"vocab": ["cat", "the"]},
        {"max_sentence": 2},
    ):
        assert passes_for(threads=1, **options) == 1, options
        assert passes_for(threads=1, **options) == 0, options
    assert len(list(cache.glob("data-*"))) == 1
    assert passes_for(threads=1) == 1
    path.write_bytes(TEXT.replace(b"cat", b"cow"))  # same size
    os.utime(path, ns=(1, 1))
    assert passes_for(threads=1) == 1
    next(cache.glob("data-*/ids.npy")).write_bytes(b"")
    assert passes_for(threads=1) == 1


def test_damaged_directories(tmp_path):
    target = tmp_path / "saved"
    with pytest.raises(FileNotFoundError, match=r"is .*saved a directory written by"):
        Corpus.load(target)
    corpus = Corpus.from_sentences([["a", "b", "a"], ["b", "c"]])
    for name in ("ids.npy", "offsets.npy", "counts.npy", "words"):
        corpus.save(target)
        file = next(target.glob(f"data-*/{name}"))
        data = file.read_bytes()
        file.write_bytes(data[:-1])
        with pytest.raises(FormatError, match=rf"{name}: expected {len(data)} bytes, got {len(data) - 1}"):
            Corpus.load(target)
        file.write_bytes(b"\xff" * len(data))
        with pytest.raises(FormatError, match=name):
            Corpus.load(target)
        file.unlink()
        with pytest.raises(FormatError, match=rf"{name}: expected a file of {len(data)} bytes, got none"):
            Corpus.load(target)
    corpus.save(target)
    index = target / "corpus.json"
    meta = json.loads(index.read_text())
    changed = ({"format": 2}, {"n_tokens": 4}, {"n_tokens": "5"}, {"bytes": []}, {"bytes": {"ids.npy": "x"}})
    for text in ("", "[]", "{}", *(json.dumps({**meta, **change}) for change in changed)):
        index.write_text(text)
        with pytest.raises(FormatError, match="expected"):
            Corpus.load(target)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        *(
            ("offsets.npy", old, new)
            for old, new in ((b"'descr'", b"('escr'"), (b"(3,)", b"(3.)"), (b"False", b"Fals("))
        ),
        ("counts.npy", b"(3,)", b"(9,)"),
        ("ids.npy", np.int32([1, 2]), np.int32([1, 3])),
        ("ids.npy", np.int32([1, 2]), np.int32([-1, 2])),
        ("counts.npy", np.int64([2, 1]), np.int64([2, 2])),
        ("counts.npy", np.int64([2, 1]), np.int64([4, -1])),
        ("words", b"a\0b", b"c\0b"),
    ],
)
def test_damage_inside_a_file_is_found(tmp_path, name, old, new):
    source, cache = tmp_path / "text", tmp_path / "cache"
    source.write_text("a b a\nb c")
    before = as_twin(Corpus.from_file(source, min_count=1, cache=cache))
    file = next(cache.glob(f"data-*/{name}"))
    head, found, tail = file.read_bytes().rpartition(bytes(old))
    file.write_bytes(head + bytes(new) + tail)
    assert found
    with pytest.raises(FormatError, match=name):
        Corpus.load(cache)
    assert as_twin(Corpus.from_file(source, min_count=1, cache=cache)) == before


def test_a_saved_corpus_is_no_cache(tmp_path):
    (tmp_path / "text").write_text("a b")
    Corpus.from_sentences([["mine"]]).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved: expected a cache or nothing, got a corpus written"):
        Corpus.from_file(tmp_path / "text", min_count=1, cache=tmp_path / "saved")
    assert Corpus.load(tmp_path / "saved").words == ["mine"]


def test_saving_over_itself_and_after_a_failure(tmp_path, monkeypatch):
    target = tmp_path / "saved"
    corpus = Corpus.from_sentences([["a", "b"]])
    corpus.save(target)
    loaded = Corpus.load(target)
    loaded.save(target)
    assert list(loaded) == list(Corpus.load(target)) == [["a", "b"]]
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Corpus.from_sentences([["c"]]).save(target)
    with pytest.raises(OSError, match="disk full"):
        corpus.save_vocab(tmp_path / "vocab")
    assert list(Corpus.load(target)) == [["a", "b"]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]
    assert len(list(target.iterdir())) == 2
    with pytest.raises(ValueError, match="read-only"):
        loaded.ids[0] = 1


def test_killed_while_saving(tmp_path):
    """kill -9 at any moment leaves a complete corpus, the old one or the new one."""
    target = tmp_path / "saved"
    program = (
        "import sys; from embfast.text.corpus import Corpus\n"
        "corpora = [Corpus.from_sentences([[w] * 200_000] * 2) for w in 'ab']\n"
        "corpora[0].save(sys.argv[1]); print('saved', flush=True)\n"
        "while True:\n"
        "    for corpus in corpora: corpus.save(sys.argv[1])\n"
    )
    for delay in (0.0, 0.02, 0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"saved\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        corpus = Corpus.load(target)
        assert corpus.n_tokens == 400_000
        assert corpus.words in (["a"], ["b"])


def test_arrays_on_disk_leave_no_file_behind(tmp_path, monkeypatch):
    small_steps(monkeypatch, 16, memory=0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "text").write_bytes(TEXT * 100)
    corpus = Corpus.from_file(tmp_path / "text", min_count=1, threads=2)
    assert isinstance(corpus.ids, np.memmap)
    assert as_twin(corpus) == twin(TEXT * 100)
    assert list((tmp_path / "tmp").iterdir()) == []


# Vocabulary files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("</s> 2\na 3\nb\n", 3),
        ("a x\n", 1),
        ("a -1\n", 1),
        ("a 1\n\nb 2\n", 2),
        ("a b 1\n", 1),
        (" 1\n", 1),
        ("a 1\nb 1\na 2\n", 3),
        ("a 99999999999999999999\n", 1),
    ],
)
def test_bad_vocabulary_files(tmp_path, text, line):
    path = tmp_path / "vocab"
    path.write_text(text)
    with pytest.raises(FormatError, match=rf"vocab:{line}: "):
        read_vocab(path)


def test_vocabulary_files(tmp_path):
    path = tmp_path / "vocab"
    corpus = Corpus.from_sentences([["b", "a", "b"], ["é"]])
    corpus.save_vocab(path)
    assert path.read_text(encoding="utf-8") == "</s> 2\nb 2\na 1\né 1\n"
    assert read_vocab(path)[0] == ["b", "a", "é"]
    assert read_vocab(path)[1].tolist() == [2, 1, 1]
    path.write_bytes(b"x 3\r\ny 1")
    assert read_vocab(path)[0] == ["x", "y"]
    path.write_bytes(b"\xff 1\n")
    with pytest.raises(FormatError, match="vocab:1: expected UTF-8"):
        read_vocab(path)
    with pytest.raises(ValueError, match="holds white space"):
        Corpus.from_sentences([["New York"]]).save_vocab(path)


def test_with_words_needs_distinct_words():
    with pytest.raises(ValueError, match="1 repeated"):
        Corpus.from_sentences([["a"]]).with_words(["a", "a"])
    nothing = Corpus.from_sentences([["a"], ["a"]]).with_words(["b"])
    assert (len(nothing), nothing.n_tokens) == (2, 0)


def test_save_removes_only_data_of_a_corpus(tmp_path):
    """A directory of the user may also be named data-..."""
    own = [tmp_path / "data-2024", tmp_path / "data-raw", tmp_path / "data-0123abcd", tmp_path / "data-deadbeef"]
    for path in own:
        path.mkdir()
    (own[2] / "table.csv").write_text("1,2")
    (own[3] / "ids.npy").write_text("of a process that was killed")
    for path in own:
        os.utime(path, (0, 0))
    corpus = Corpus.from_sentences([["a", "b"]] * 9)
    for _ in range(2):
        corpus.save(tmp_path)
    assert [path.exists() for path in own] == [True, True, True, False]
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("data-")]) == 4
    assert Corpus.load(tmp_path).words == ["a", "b"]


@pytest.mark.parametrize("memory", [1 << 28, 0])
@pytest.mark.parametrize("threads", [1, 3])
def test_more_words_than_fit_in_two_bytes(tmp_path, threads, memory, monkeypatch):
    """Provisional ids are packed by size; the size changes at 2^15 - 2 and 2^16 - 2 words."""
    small_steps(monkeypatch, 1 << 14, memory, chunk=1 << 20)
    rng = np.random.default_rng(0)
    first_sight = [f"w{i}" for i in range(140_000)]
    again = [f"w{i}" for i in rng.integers(0, 140_000, 140_000)]
    lines = [" ".join(pair) for pair in zip(first_sight, again, strict=True)]
    (tmp_path / "text").write_text("\n".join(lines) + "\n")
    corpus = Corpus.from_file(tmp_path / "text", min_count=1, threads=threads)
    assert [" ".join(document) for document in corpus] == lines
    assert corpus.counts.tolist() == sorted(Counter(first_sight + again).values(), reverse=True)


def test_decreasing_offsets_are_refused():
    with pytest.raises(ValueError, match="offsets must not decrease"):
        Corpus(["a"], np.array([4]), np.zeros(4, np.int32), np.array([0, 3, 1, 4]))


@pytest.mark.parametrize(
    "wrong",
    [{"min_count": 2.5}, {"max_vocab": 2.0}, {"threads": 1.5}, {"max_sentence": 2.5}, {"keep": [1]}, {"vocab": [1]}],
    ids=str,
)
def test_options_of_another_type(wrong, tmp_path):
    (tmp_path / "a.txt").write_text("a b c")
    with pytest.raises(TypeError):
        Corpus.from_file(tmp_path / "a.txt", **wrong)


def test_numpy_options_can_be_cached(tmp_path):
    (tmp_path / "a.txt").write_text("a b a b")
    for _ in range(2):
        found = Corpus.from_file(tmp_path / "a.txt", min_count=np.int64(2), cache=tmp_path / "cache")
        assert found.words == ["a", "b"]


@pytest.mark.parametrize("threads", [1, 3])
def test_bad_bytes_with_a_fixed_vocabulary(tmp_path, threads):
    """Replaced bytes may spell a word of the vocabulary; "strict" raises, as without a vocabulary."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait\n" * 5)
    read = Corpus.from_file(tmp_path / "a.txt", min_count=1, errors="replace", threads=threads)
    again = Corpus.from_file(tmp_path / "a.txt", vocab=read.words, errors="replace", threads=threads)
    assert dict(zip(again.words, again.counts.tolist(), strict=True)) == {"caf\ufffd": 5, "au": 5, "lait": 5}
    skipped = Corpus.from_file(tmp_path / "a.txt", vocab=["au", "caf\ufffd"], errors="skip", threads=threads)
    assert skipped.n_tokens == 5
    with pytest.raises(FormatError, match=r"a\.txt:1: .*caf"):
        Corpus.from_file(tmp_path / "a.txt", vocab=["au"], threads=threads)


@pytest.mark.parametrize("block", [1, 4, 1 << 20])
def test_a_byte_order_mark_is_skipped(tmp_path, block, monkeypatch):
    small_steps(monkeypatch, block)
    raw = b"\xef\xbb\xbfhello world hello\nhello\n"
    (tmp_path / "plain").write_bytes(raw)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(raw))
    for name in ("plain", "packed.gz"):
        corpus = Corpus.from_file([tmp_path / name, tmp_path / name], min_count=1, threads=2)
        assert (corpus.words, corpus.counts.tolist(), len(corpus)) == (["hello", "world"], [6, 2], 4)


def test_skipped_tokens_take_no_memory(tmp_path):
    """Distinct tokens of bad bytes take no slot in the word table."""
    (tmp_path / "text").write_bytes(b" ".join(b"%d\xff" % i for i in range(600_000)) + b" a b a\n")
    code = """
import re, sys
from embfast import Corpus
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
before = peak()
corpus = Corpus.from_file(sys.argv[1], min_count=1, errors="skip", threads=1)
print(corpus.n_tokens, (peak() - before) // 1024)
"""
    run = [sys.executable, "-c", code, str(tmp_path / "text")]
    n_tokens, megabytes = map(int, subprocess.run(run, check=True, capture_output=True, text=True).stdout.split())
    assert n_tokens == 3
    assert megabytes < 32


def test_an_encoder_refuses_calls_out_of_order():
    def encoder():
        made = kernels.TextEncoder(
            n_threads=1, block_bytes=64, memory_bytes=1 << 20, spill_fd=-1, errors="strict", max_distinct=9,
            tokens=False, pruning=False,
        )  # fmt: skip
        assert made.add_bytes(b"a b a\n") is None
        assert made.end_source() is None
        return made

    ids, offsets = np.empty(3, np.int32), np.empty(2, np.int64)
    with pytest.raises(RuntimeError, match="after select"):
        encoder().write(ids[:0], offsets)
    made = encoder()
    made.select(1, 0, [], False)
    with pytest.raises(RuntimeError, match="no text can be added"):
        made.add_bytes(b"c\n")
    with pytest.raises(ValueError, match="ids"):
        made.write(ids[:1], offsets)
    assert made.write(ids, offsets)
    assert (ids.tolist(), offsets.tolist()) == ([0, 1, 0], [0, 3])
    for again in (lambda: made.write(ids, offsets), lambda: made.select(1, 0, [], False)):
        with pytest.raises(RuntimeError, match="write"):
            again()


def test_pruning_may_leave_only_words_that_are_too_rare(tmp_path):
    (tmp_path / "text").write_text(" ".join(f"w{i % 40}" for i in range(160)))
    with pytest.raises(ValueError, match=r"no word occurs min_count=5 times.*the most frequent occurs \d times"):
        Corpus.from_file(tmp_path / "text", min_count=5, max_distinct=30, threads=1)
