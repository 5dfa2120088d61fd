"""Vector files: round trips in every format, files of the original tools, and errors for damaged files."""

import errno
import fcntl
import gzip
import json
import os
import random
import stat
import subprocess
import sys
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from embfast.errors import FormatError
from embfast.files import durable, formats
from embfast.vectors.vectors import Vectors

EXTENSIONS = [".bin", ".txt", ".vec", ".npz", ".safetensors", ".bin.gz", ".txt.gz", ".vec.gz"]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda word: word.encode().split() == [word.encode()]
)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def tables(draw, keys):
    dim = draw(st.integers(1, 5))
    names = draw(st.lists(keys, unique=True, max_size=8))
    rows = draw(st.lists(st.lists(FLOATS, min_size=dim, max_size=dim), min_size=len(names), max_size=len(names)))
    return names, np.array(rows, dtype=np.float32).reshape(len(names), dim)


def assert_same_bits(a, b):
    assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


# ---- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", EXTENSIONS)
@given(table=tables(WORDS))
@settings(max_examples=40, deadline=None)
def test_round_trip(tmp_path_factory, extension, table):
    keys, matrix = table
    path = tmp_path_factory.getbasetemp() / f"round{extension}"
    formats.write(path, keys, matrix)
    got_keys, got = formats.read(path)
    assert got_keys == keys
    assert_same_bits(got, matrix)


@given(table=tables(WORDS))
@settings(max_examples=40, deadline=None)
def test_round_trip_of_glove(tmp_path_factory, table):
    keys, matrix = table
    path = tmp_path_factory.getbasetemp() / "round.glove"
    formats.write(path, keys, matrix, "glove")
    if not keys:
        with pytest.raises(FormatError, match="expected a key"):
            formats.read(path, "glove")
        return
    got_keys, got = formats.read(path, "glove")
    assert got_keys == keys
    assert_same_bits(got, matrix)


@pytest.mark.parametrize("extension", [".npz", ".safetensors"])
@given(table=tables(st.text(st.characters(exclude_categories=["Cs"]), max_size=8)))
@settings(max_examples=40, deadline=None)
def test_round_trip_of_any_key(tmp_path_factory, extension, table):
    keys, matrix = table
    path = tmp_path_factory.getbasetemp() / f"any{extension}"
    formats.write(path, keys, matrix)
    for mmap in (False, True):
        got_keys, got = formats.read(path, mmap=mmap)
        assert got_keys == keys
        assert_same_bits(got, matrix)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_padded_rows_and_many_blocks(tmp_path, extension):
    wide = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    keys = [f"word{i}" for i in range(3000)]
    formats.write(tmp_path / f"v{extension}", keys, wide[:, :50])
    got_keys, got = formats.read(tmp_path / f"v{extension}")
    assert got_keys == keys
    assert_array_equal(got, wide[:, :50])
    got_keys, got = formats.read(tmp_path / f"v{extension}", limit=1234)
    assert got_keys == keys[:1234]
    assert_array_equal(got, wide[:1234, :50])


def test_the_format_comes_from_the_extension_or_the_argument(tmp_path):
    with pytest.raises(ValueError, match=r"cannot tell the format.*\.safetensors"):
        formats.format_of("vectors.dat")
    with pytest.raises(ValueError, match="format must be one of"):
        formats.format_of("vectors.bin", "word2vec")
    assert formats.format_of("a.b/vectors.TXT.gz") == "text"
    with pytest.raises(ValueError, match="not gzipped"):
        formats.write(tmp_path / "a.npz.gz", [], np.empty((0, 1), np.float32))


# ---- files of other tools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [0, 1])
def test_files_of_the_original_word2vec(tmp_path, original, binary):
    rng = random.Random(0)
    words = [f"word{i}" for i in range(30)] + ["naïve", "日本"]
    (tmp_path / "corpus.txt").write_text(
        "".join(" ".join(rng.choices(words, k=20)) + "\n" for _ in range(200)), encoding="utf-8"
    )
    path = tmp_path / ("v.bin" if binary else "v.txt")
    command = [original("word2vec"), "-train", "corpus.txt", "-output", path.name, "-binary", str(binary), "-size", "7"]
    subprocess.run([*command, "-threads", "1", "-iter", "1"], cwd=tmp_path, check=True, capture_output=True)
    vectors = Vectors.load(path)
    assert set(vectors) == {"</s>", *words}
    assert vectors.dim == 7
    raw = path.read_bytes()
    if not binary:
        rows = [line.split(b" ") for line in raw.splitlines()[1:]]
        assert [row[0].decode() for row in rows] == vectors.keys
        assert_array_equal(vectors.matrix, np.array([[float(x) for x in row[1:8]] for row in rows], dtype=np.float32))
        return
    vectors.save(tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == raw


def test_binary_with_and_without_newlines_after_rows(tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    for newline in (b"\n", b""):
        body = b"".join(key + b" " + row.tobytes() + newline for key, row in zip((b"a", b"b", b"c"), rows, strict=True))
        (tmp_path / "v.bin").write_bytes(b"3 2\n" + body)
        keys, matrix = formats.read(tmp_path / "v.bin")
        assert keys == ["a", "b", "c"]
        assert_array_equal(matrix, rows)


@pytest.mark.parametrize("binary", [False, True])
def test_gensim_reads_ours_and_we_read_gensims(tmp_path, make_vectors, binary):
    gensim = pytest.importorskip("gensim.models", reason="gensim is not installed: pip install embfast[gensim]")
    ours = make_vectors(50, 9)
    path = tmp_path / ("v.bin" if binary else "v.txt")
    ours.save(path)
    theirs = gensim.KeyedVectors.load_word2vec_format(path, binary=binary)
    assert theirs.index_to_key == ours.keys
    assert_array_equal(theirs.vectors, ours.matrix)
    theirs.save_word2vec_format(path, binary=binary)
    back = Vectors.load(path)
    assert back.keys == ours.keys
    assert_array_equal(back.matrix, ours.matrix)


def test_safetensors_library_reads_ours(tmp_path, make_vectors):
    numpy_files = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    vectors = make_vectors(5, 3)
    vectors.save(tmp_path / "v.safetensors")
    tensors = numpy_files.load_file(tmp_path / "v.safetensors")
    assert_array_equal(tensors["matrix"], vectors.matrix)
    assert tensors["keys_utf8"].tobytes() == b"w0w1w2w3w4"
    numpy_files.save_file(tensors, tmp_path / "theirs.safetensors")
    assert Vectors.load(tmp_path / "theirs.safetensors").keys == vectors.keys


def test_numpy_reads_ours_and_we_read_numpys(tmp_path, make_vectors):
    vectors = make_vectors(5, 3)
    vectors.save(tmp_path / "v.npz")
    with np.load(tmp_path / "v.npz") as members:
        arrays = dict(members)
    assert_array_equal(arrays["matrix"], vectors.matrix)
    assert_array_equal(arrays["keys_offsets"], [0, 2, 4, 6, 8, 10])
    np.savez(tmp_path / "numpy.npz", **arrays)
    assert_array_equal(Vectors.load(tmp_path / "numpy.npz").matrix, vectors.matrix)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    with pytest.raises(FormatError, match="uncompressed"):
        Vectors.load(tmp_path / "packed.npz")


@pytest.mark.parametrize("extension", [".npz", ".safetensors"])
def test_mapped_matrix_is_aligned_and_read_only(tmp_path, make_vectors, extension):
    vectors = make_vectors(100, 7)
    vectors.save(tmp_path / f"v{extension}")
    mapped = Vectors.load(tmp_path / f"v{extension}", mmap=True, limit=60)
    assert isinstance(mapped.matrix.base, np.memmap)
    assert mapped.matrix.ctypes.data % 64 == 0
    assert not mapped.matrix.flags.writeable
    assert mapped.keys == vectors.keys[:60]
    assert_array_equal(mapped.matrix, vectors.matrix[:60])


@pytest.mark.parametrize("extension", [".bin", ".txt"])
def test_formats_that_cannot_be_mapped(tmp_path, make_vectors, extension):
    make_vectors(2, 2).save(tmp_path / f"v{extension}")
    with pytest.raises(ValueError, match=r"cannot be memory-mapped; save it as \.npz"):
        Vectors.load(tmp_path / f"v{extension}", mmap=True)


# ---- what can be wrong --------------------------------------------------------------------------------------------


def row(*numbers):
    return np.array(numbers, dtype="<f4").tobytes()


NAN, INF = float("nan"), float("inf")
BAD = {  # name: (file, content, what the message must say)
    "empty text": ("v.txt", b"", r"v\.txt: expected a first line .* it is empty"),
    "empty binary": ("v.bin", b"", r"v\.bin: expected a first line"),
    "empty npz": ("v.npz", b"", "empty file"),
    "empty safetensors": ("v.safetensors", b"", "empty file"),
    "header of words": ("v.txt", b"two words\na 1 2\n", r"v\.txt:1: expected two integers.*got b'two words"),
    "header of floats": ("v.bin", b"1.0 2.0\n", r"v\.bin:1: expected two integers"),
    "header negative": ("v.txt", b"-1 2\n", "expected two integers"),
    "header zero columns": ("v.txt", b"1 0\na\n", "expected two integers"),
    "header of 5000 digits": ("v.txt", b"9" * 5000 + b" 2\na 1 2\n", "expected two integers"),
    "header absurd rows, text": ("v.txt", b"1000000000000 300\na 1 2\n", r"v\.txt:1: expected room for 1000000000000"),
    "header absurd rows, binary": ("v.bin", b"1000000000000 300\na ", r"v\.bin:1: expected room for 1000000000000"),
    "header absurd columns": ("v.bin", b"1 1000000000000\na ", "expected room for 1 rows of 1000000000000"),
    "header absurd, gzip": ("v.txt.gz", gzip.compress(b"1000000000000 300\na 1 2\n"), "expected room"),
    "too few rows": ("v.txt", b"3 1\naaaaaaaaaaaaa 1\nb 2\n", r"v\.txt:4: expected 3 rows as line 1 says, got 2"),
    "too many rows": ("v.txt", b"1 1\na 1\nb 2\n", r"v\.txt:3: expected the end .* after 1 rows .* got b'b 2'"),
    "too many rows, binary": ("v.bin", b"1 1\na " + row(1) + b"\nb " + row(2), r"byte 10: expected the end"),
    "duplicate": ("v.txt", b"2 1\na 1\na 2\n", r"v\.txt:3: expected a new key, got 'a' again; it was first at 2"),
    "duplicate, binary": ("v.bin", b"2 1\na " + row(1) + b"a " + row(2), r"byte 10: .*'a' again; .* at  ?byte 4"),
    "space in a key": (
        "v.txt",
        b"2 2\nnew york 1 2\nb 3 4\n",
        r"v\.txt:2: expected 2 numbers after 'new', got 3\..*space",
    ),
    "glove with a space in a key": ("v.txt", b"a 1 2\nat b 1 2\n", r"v\.txt:2: expected 2 numbers after 'at', got 3"),
    "short line": ("v.vec", b"2 2\na 1\nb 1 2\n", r"v\.vec:2: expected 2 numbers after 'a', got 1"),
    "no number": ("v.txt", b"2 2\na 1 2\nb 1 x2\n", r"v\.txt:3: expected 2 numbers after 'b', got b'x2'"),
    "odd bytes": ("v.txt", b"2 1\n\xff 1\nb 2\n", r"v\.txt:2: expected a key in utf-8, got b'\\xff'"),
    "odd bytes, binary": ("v.bin", b"1 1\n\xc3 " + row(1), r"v\.bin: byte 4: expected a key in utf-8, got b'\\xc3'"),
    "cut in a row": ("v.bin", b"2 2\na " + row(1, 2) + b"\nbb" + row(1), r"byte 21: .*expected 2 rows|expected room"),
    "cut in the last number": ("v.bin", b"1 2\nabcdef " + row(1, 2)[:-1], "expected 1 rows"),
    "no space": ("v.bin", b"2 1\n" + b"x" * 70_000, "without a space"),
    "nan": ("v.txt", b"2 1\na nan\nb 1\n", r"v\.txt:2: expected finite numbers after 'a', got nan"),
    "inf": ("v.txt", b"2 1\na 1\nb -inf\n", r"v\.txt:3: expected finite numbers after 'b', got -inf"),
    "beyond float32": ("v.txt", b"2 1\na 1\nb 1e39\n", r"v\.txt:3: expected finite numbers after 'b', got inf"),
    "nan, binary": ("v.bin", b"2 1\na " + row(1) + b"b " + row(NAN), r"byte 10: expected finite .* after 'b', got nan"),
    "no key": ("v.bin", b"1 1\n a" + row(1), "expected a key, got none"),
    "cut gzip": ("v.txt.gz", gzip.compress(b"2 1\na 1\nb 2\n" + bytes(range(256)))[:-20], "gzip data"),
    "broken gzip": ("v.txt.gz", gzip.compress(b"1 1\na 1\n")[:10] + b"\xff" * 20, "gzip data is damaged"),
    "no zip": ("v.npz", b"PK\x03\x04 nothing", "expected an npz archive"),
    "no safetensors": ("v.safetensors", b"\xff" * 9, "expected a safetensors file, .* at most 1, got"),
    "no json": ("v.safetensors", (4).to_bytes(8, "little") + b"{]}}", "expected a safetensors header"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_says_where_and_what(tmp_path, name):
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        formats.read(tmp_path / file)
    assert str(caught.value).startswith(str(tmp_path / file))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.bin"):
        formats.read(tmp_path / "none.bin")


def tensors(**changes):
    arrays = {
        "matrix": np.ones((2, 3), np.float32),
        "keys_offsets": np.array([0, 1, 2]),
        "keys_utf8": np.frombuffer(b"ab", np.uint8),
    }
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matrix": None}, "expected arrays matrix, keys_offsets, keys_utf8, got keys_offsets, keys_utf8"),
        ({"matrix": np.ones((2, 3))}, "expected matrix to be float32 with 2 axes, got float64"),
        ({"matrix": np.ones(2, np.float32)}, "with 2 axes"),
        ({"matrix": np.asfortranarray(np.ones((2, 3), np.float32))}, "C order"),
        ({"keys_offsets": np.array([0, 2])}, "expected keys_offsets to rise from 0 to 2 in 3 steps"),
        ({"keys_offsets": np.array([0, 3, 2])}, "expected keys_offsets to rise"),
        ({"keys_offsets": np.array([-1, 1, 2])}, "expected keys_offsets to rise"),
        (
            {"keys_utf8": np.frombuffer(b"aa", np.uint8)},
            "row 1: expected a new key, got 'a' again; it was first at row 0",
        ),
        ({"keys_utf8": np.frombuffer(b"a\xff", np.uint8)}, "row 1: expected a key in utf-8"),
        ({"matrix": np.array([[1], [INF]], np.float32)}, "row 1: expected finite numbers, got inf"),
    ],
)
def test_bad_members_of_an_npz(tmp_path, changes, message):
    np.savez(tmp_path / "v.npz", **tensors(**changes))
    with pytest.raises(FormatError, match=message):
        formats.read(tmp_path / "v.npz")


@pytest.mark.parametrize("extension", [".npz", ".safetensors", ".bin", ".txt", ".txt.gz", ".bin.gz"])
def test_a_file_truncated_anywhere_is_an_error(tmp_path, make_vectors, extension):
    path = tmp_path / f"v{extension}"
    make_vectors(4, 3).save(path)
    whole = path.read_bytes()
    for size in range(len(whole) - 12):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            formats.read(path)


def test_absurd_sizes_inside_archives_allocate_nothing(tmp_path):
    header = {"matrix": {"dtype": "F32", "shape": [10**12, 300], "data_offsets": [0, 4 * 300 * 10**12]}}
    text = json.dumps(header).encode()
    (tmp_path / "v.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FormatError, match="expected matrix"):
        formats.read(tmp_path / "v.safetensors")
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive, archive.open("matrix.npy", "w") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 300)})
    with pytest.raises(FormatError, match=r"matrix\.npy to hold"):
        formats.read(tmp_path / "v.npz")


@pytest.mark.parametrize("errors", ["replace", "skip"])
@pytest.mark.parametrize("binary", [False, True])
def test_replace_repairs_and_skip_drops(tmp_path, errors, binary):
    rows = [(b"a", 1), (b"\xffx", 2), (b"a", 3), (b"c", NAN), (b"d", 5)]
    if binary:
        path = tmp_path / "v.bin"
        path.write_bytes(b"5 1\n" + b"".join(key + b" " + row(x) + b"\n" for key, x in rows))
    else:
        path = tmp_path / "v.txt"
        path.write_bytes(b"5 1\n" + b"".join(b"%s %f\n" % pair for pair in rows))
    with pytest.warns(UserWarning, match=r"3 faults; the first: .*expected a key in utf-8"):
        keys, matrix = formats.read(path, errors=errors)
    expected = {"replace": (["a", "�x", "c", "d"], [1, 2, 0, 5]), "skip": (["a", "d"], [1, 5])}[errors]
    assert (keys, matrix.ravel().tolist()) == expected


@pytest.mark.parametrize("errors", ["replace", "skip"])
def test_replace_and_skip_in_an_npz(tmp_path, errors):
    np.savez(
        tmp_path / "v.npz",
        matrix=np.array([[1], [2], [3], [NAN], [5]], np.float32),
        keys_offsets=np.arange(6),
        keys_utf8=np.frombuffer(b"a\xffacd", np.uint8),
    )
    with pytest.warns(UserWarning, match="3 faults"):
        keys, matrix = formats.read(tmp_path / "v.npz", errors=errors)
    expected = {"replace": (["a", "�", "c", "d"], [1, 2, 0, 5]), "skip": (["a", "d"], [1, 5])}[errors]
    assert (keys, matrix.ravel().tolist()) == expected


def test_skip_drops_broken_lines_and_a_truncated_end(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"6 2\na 1 2\nnew york 1 2\nb 1 x\nc 3 4\nd 5")
    with pytest.warns(UserWarning, match="4 faults"):
        keys, matrix = formats.read(tmp_path / "v.txt", errors="skip")
    assert keys == ["a", "c"]
    assert_array_equal(matrix, [[1, 2], [3, 4]])
    with pytest.raises(FormatError, match="after 'new'"):
        formats.read(tmp_path / "v.txt", errors="replace", limit=2)
    (tmp_path / "v.bin").write_bytes(b"3 1\na " + row(1) + b"\nb " + row(2) + b"\nc")
    with pytest.warns(UserWarning, match="dropped"):
        assert formats.read(tmp_path / "v.bin", errors="skip")[0] == ["a", "b"]


def test_rows_after_the_limit_are_not_checked(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"1000000000 1\na 1\nb 2\n\xff\n")
    assert formats.read(tmp_path / "v.txt", limit=2)[0] == ["a", "b"]
    assert formats.read(tmp_path / "v.txt", limit=0)[0] == []
    with pytest.raises(ValueError, match="limit"):
        formats.read(tmp_path / "v.txt", limit=-1)
    with pytest.raises(ValueError, match="errors must be"):
        formats.read(tmp_path / "v.txt", errors="ignore")


def test_blank_lines_tabs_and_other_encodings(tmp_path):
    (tmp_path / "v.txt").write_bytes("2 2\r\nné\t1\t2\r\n\r\nb  3   4 \r\n\n".encode("latin-1"))
    keys, matrix = formats.read(tmp_path / "v.txt", encoding="latin-1")
    assert keys == ["né", "b"]
    assert_array_equal(matrix, [[1, 2], [3, 4]])


# ---- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["new york", "", "a\tb", "a\n", "\ud800"])
@pytest.mark.parametrize("extension", [".bin", ".txt"])
def test_keys_that_the_format_cannot_hold(tmp_path, key, extension):
    with pytest.raises(ValueError, match="key"):
        formats.write(tmp_path / f"v{extension}", [key], np.ones((1, 1), np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, make_vectors, monkeypatch, extension):
    path = tmp_path / f"v{extension}"
    make_vectors(3, 2).save(path)
    before = path.read_bytes()

    def fail(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        make_vectors(500, 20).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("redirected", [True, False])
def test_an_open_file_is_written_directly(tmp_path, path, redirected):
    """The output is appended, as cat does with a pipe or a file opened with >>."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "out").write_text("before\n")
    code = (
        "import sys; from embfast.files.durable import replacing; from embfast.training.settings import check_place\n"
    )
    code += "check_place(sys.argv[1])\n"
    code += "with replacing(sys.argv[1]) as stream: stream.write(b'text\\n')"
    command = [sys.executable, "-c", code, str(tmp_path / path)]  # joining an absolute path returns it
    if redirected:
        with open(tmp_path / "out", "ab") as out:
            for _ in range(2):
                subprocess.run(command, stdout=out, check=True)
        assert (tmp_path / "out").read_text() == "before\ntext\ntext\n"
    else:
        assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b"text\n"


@pytest.mark.parametrize("name", ["e" * 255, "\N{SNOWMAN}" * 85, "a" + "\N{SNOWMAN}" * 84], ids=["a", "b", "c"])
def test_the_longest_names_can_be_written(tmp_path, name):
    for text in (b"old", b"new"):
        with durable.replacing(tmp_path / name) as stream:
            stream.write(text)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"new")]


def test_keys_too_long_for_bin_are_refused(tmp_path):
    rows = np.ones((1, 2), np.float32)
    formats.write(tmp_path / "v.bin", ["k" * 65_535], rows)
    assert formats.read(tmp_path / "v.bin")[0] == ["k" * 65_535]
    for wrong in (
        lambda: formats.write(tmp_path / "v.bin", ["k" * 65_536], rows),
        lambda: formats.check_keys(["k" * 65_536], "bin"),
    ):
        with pytest.raises(ValueError, match="has 65,536 bytes; format 'bin' allows at most 65,535"):
            wrong()
    formats.check_keys(["k" * 65_536], "text")


@pytest.mark.parametrize("encoding", ["hex", "base64", "rot13"])
def test_encodings_that_are_not_of_text_are_refused(tmp_path, encoding):
    with pytest.raises(ValueError, match=f"encoding: '{encoding}' is not a text encoding"):
        formats.read(tmp_path / "v.txt", encoding=encoding)


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "v").write_bytes(b"old")

    def write_half():
        with durable.replacing(tmp_path / "v") as stream:
            stream.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("v", b"old")]


WRITER = """
import sys, time
from embfast.files import durable, formats
with durable.replacing(sys.argv[1]) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def writing(path):
    """A process in the middle of writing a file."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


def test_the_next_write_removes_files_of_a_killed_writer(tmp_path, make_vectors):
    path = tmp_path / "v.bin"
    others = [".v.bin.tmp", ".v.bin.0123456.tmp", ".w.bin.01234567.tmp", ".v.bin.01234567.tmp2", "v.bin.01234567.tmp"]
    for name in others:
        (tmp_path / name).touch()
    for _ in range(2):
        with writing(path) as process:
            process.kill()
            process.wait()
    assert len(list(tmp_path.iterdir())) == len(others) + 2 - 1  # the second writer removed the file of the first
    make_vectors(2, 2).save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "v.bin"])


def test_a_living_writer_keeps_its_file(tmp_path, make_vectors):
    path = tmp_path / "v.bin"
    with writing(path) as process:
        before = list(tmp_path.iterdir())
        make_vectors(2, 2).save(path)
        assert sorted(tmp_path.iterdir()) == sorted([*before, path])
        process.communicate("\n")
        assert process.returncode == 0
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == [(path, b"half")]


def test_a_writer_whose_temporary_file_was_removed_opens_another(tmp_path, monkeypatch):
    lock, taken = fcntl.flock, []

    def lock_too_late(stream, operation):
        if not taken:
            taken.append(stream.name)
            os.unlink(stream.name)
        lock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with durable.replacing(tmp_path / "v") as stream:
        stream.write(b"new")
    assert taken
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("v", b"new")]


def test_without_locks_a_write_works_and_removes_nothing(tmp_path, monkeypatch):
    def no_locks(stream, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".v.01234567.tmp").touch()
    with durable.replacing(tmp_path / "v") as stream:
        stream.write(b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".v.01234567.tmp", "v"]


def test_a_write_keeps_mode_and_symlink_and_spares_devices(tmp_path, make_vectors):
    vectors = make_vectors(2, 2)
    vectors.save(tmp_path / "v.bin")
    os.chmod(tmp_path / "v.bin", 0o640)
    (tmp_path / "link.bin").symlink_to("v.bin")
    vectors.save(tmp_path / "link.bin")
    assert (tmp_path / "link.bin").is_symlink()
    assert stat.S_IMODE((tmp_path / "v.bin").stat().st_mode) == 0o640
    vectors.save("/dev/null", "bin")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(IsADirectoryError):
        vectors.save(tmp_path, "bin")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        vectors.save(tmp_path / "none" / "v.bin")


def test_projector_files(tmp_path):
    vectors = Vectors(["new york", "b"], np.array([[1, 0.5], [-2, 0]], dtype=np.float32))
    vectors.save_projector(tmp_path / "projector")
    assert (tmp_path / "projector" / "tensors.tsv").read_text() == "1\t0.5\n-2\t0\n"
    assert (tmp_path / "projector" / "metadata.tsv").read_text() == "new york\nb\n"
    with pytest.raises(ValueError, match="tab or line break"):
        Vectors(["a\tb"], np.ones((1, 1), np.float32)).save_projector(tmp_path)
