"""Decimal text to float32 and back: kernels compared with the reference, and files of other tools."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from embfast import kernels, reference
from embfast.errors import FormatError
from embfast.files import formats

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SPELLINGS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-10, 10).map("{:f}".format),
    FLOATS.map("{:g}".format),
    FLOATS.map("{:.9g}".format),
    FLOATS.map("{:.60f}".format),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["1.", ".5", "-.5", "+1.5", "+.5", "00012.5", "-0", "1e5", "1E-3", "1e+5", "1e-05", "0e999"]),
    st.sampled_from(["0.1234567890123456789", "1.00000017881393432617187499", "1.00000017881393432617187501"]),
)
BEYOND = st.sampled_from(["inf", "-Infinity", "nan", "1e39", "-3.5e38", "1e-60", "1e400", "-1e-400"])
NO_NUMBERS = st.sampled_from(
    [
        "1_0",
        "0x10",
        "1.2.3",
        "--1",
        "+-1",
        "-+1",
        "++1",
        "1-2",
        ".",
        "-",
        "+",
        "",
        "x",
        "1e",
        "1,5",
        "٣",
        "1.5x",
        "nan(1)",
    ]
)
SPACES = st.text(" \t\r\v\f", min_size=1, max_size=3)


def assert_same_lines(text, dim, threads=1):
    bounds, row, plain, values = kernels.parse_lines(text, dim, threads)
    slow_bounds, slow_row, slow_plain, slow_values = reference.parse_lines(text, dim, threads)
    assert_array_equal(plain, slow_plain)
    assert_array_equal(bounds, slow_bounds)
    assert_array_equal(row, slow_row)
    numbers = row[plain]
    assert_array_equal(values[numbers].view(np.uint32), slow_values[numbers].view(np.uint32))
    return plain, values


# ---- reading ------------------------------------------------------------------------------------------------------


@given(st.lists(SPELLINGS, min_size=1, max_size=6), SPACES, st.sampled_from(["", " ", "\r", " \r"]))
@settings(max_examples=300, deadline=None)
def test_every_spelling_is_read_as_the_nearest_float32(tokens, space, end):
    text = f"{space.join(['key', *tokens])}{end}\n \n{space.join([' key', *tokens])}\n".encode()
    plain, _ = assert_same_lines(text, len(tokens))
    if all(1e-44 < abs(float(token)) < 3.4e38 for token in tokens):
        assert plain.tolist() == [True, False, True]


@given(st.lists(SPELLINGS, max_size=3), NO_NUMBERS | BEYOND, st.lists(SPELLINGS, max_size=3))
@settings(max_examples=200, deadline=None)
def test_tokens_that_are_not_float32_are_never_read_as_one(before, bad, after):
    tokens = [*before, bad, *after]
    plain, _ = assert_same_lines(f"key {' '.join(tokens)}\n".encode(), len(tokens))
    assert not plain.any()


@given(st.binary(max_size=60), st.integers(1, 4))
@example(b"!\x000", 1)  # a NUL is not a space
@example(b"a 1\x0b2", 2)
@example(b" a 1", 1)
@settings(max_examples=300, deadline=None)
def test_no_bytes_break_the_line_reader(noise, dim):
    assert_same_lines(noise + b"\n", dim)


@given(st.lists(st.text("k1.-+e \t\r\n", max_size=12).map(str.encode), max_size=6), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_near_numbers_and_odd_spacing(lines, dim):
    assert_same_lines(b"".join(line + b"\n" for line in lines), dim)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_share_the_lines(threads):
    rows = np.random.default_rng(3).normal(size=(3000, 40)).astype(np.float32)
    keys = [b"%d" % i for i in range(len(rows))]
    text = kernels.format_lines(keys, rows, " ", threads)
    assert text == kernels.format_lines(keys, rows, " ", 1)
    bounds, row, plain, values = kernels.parse_lines(text, 40, threads)
    assert plain.all()
    assert_array_equal(row, np.arange(len(rows)))
    assert_array_equal(values, rows)
    assert [text[begin:end] for begin, end in bounds] == keys


def test_blank_lines_cost_no_rows():
    *_, values = kernels.parse_lines(b"\n" * 1000 + b"a 1 2\n", 10**9, 1)
    assert values.shape == (0, 10**9)


def test_invalid_arguments_are_refused():
    rows = np.ones((2, 2), np.float32)
    for text, dim, threads, told in (
        (b"a 1", 1, 1, "parse_lines: expected a newline at the end"),
        (b"a 1\n", 0, 1, "dim: expected 1 or more"),
        (b"a 1\n", 1, 0, "threads: expected 1..4096"),
    ):
        with pytest.raises(ValueError, match=told):
            kernels.parse_lines(text, dim, threads)
    with pytest.raises(ValueError, match="keys: expected one for each row"):
        kernels.format_lines([b"a"], rows, " ", 1)
    with pytest.raises(TypeError, match="keys: expected a list of bytes"):
        kernels.format_lines(["a", "b"], rows, " ", 1)
    for wrong in (rows.astype(np.float64), rows.T[:1].T, rows[0]):
        with pytest.raises(ValueError, match="rows: expected a C-contiguous float32 matrix"):
            kernels.format_lines(None, wrong, " ", 1)


# ---- writing ------------------------------------------------------------------------------------------------------


@given(st.lists(FLOATS, min_size=1, max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_numbers_are_written_as_the_reference_does(numbers, with_key):
    rows = np.array([numbers, numbers[::-1]], np.float32)
    keys = ["ключ".encode(), b"b"] if with_key else None
    text = kernels.format_lines(keys, rows, "\t", 1)
    assert text == reference.format_lines(keys, rows, "\t", 1)


def test_every_float32_round_trips():
    bits = np.random.default_rng(1).integers(0, 2**32, size=(400, 50), dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(-0.0))
    values[0, :8] = [0, -0.0, 1e-45, 3.4028235e38, 0.1, -10, 9.9999990, 1e-4]
    text = kernels.format_lines([b"k"] * 400, values, " ", 2)
    assert text.startswith(b"k 0 -0 1e-45 3.4028235e+38 0.1 -10 9.999999 1e-04 ")
    *_, plain, got = kernels.parse_lines(text, 50, 2)
    assert plain.all()
    assert_array_equal(got.view(np.uint32), values.view(np.uint32))


def test_longest_numbers_fit():
    rows = np.full((2, 3), np.float32(-1.17549435e-38))
    assert kernels.format_lines(None, rows, " ", 1) == b"-1.1754944e-38 -1.1754944e-38 -1.1754944e-38\n" * 2
    rows = -(np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32)[:, None])
    assert kernels.format_lines(None, rows, " ", 1) == reference.format_lines(None, rows, " ", 1)


# ---- files, as other tools print them -----------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["%f", "%g", "%.8f", "%.9e", "%+.6f", "%lf "])
@pytest.mark.parametrize("name", ["v.txt", "v.glove"])
def test_files_as_other_tools_print_them(tmp_path, spelling, name):
    rows = np.random.default_rng(4).normal(0, 0.2, size=(200, 30)) * 10.0 ** np.arange(-12, 3, 0.5)
    tokens = [[spelling.replace("l", "") % x for x in row] for row in rows]
    head = "200 30\n" if name == "v.txt" else ""
    (tmp_path / name).write_text(head + "".join(" ".join([f"w{i}", *t]) + "\n" for i, t in enumerate(tokens)))
    _, got = formats.read(tmp_path / name, "glove" if name == "v.glove" else None)
    assert_array_equal(got, np.array(tokens, dtype=np.float64).astype(np.float32))


def test_a_number_that_underflows_is_zero(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"2 3\na 1e-60 -1e-400 1\nb 1 2 3\n")
    _, got = formats.read(tmp_path / "v.txt")
    assert_array_equal(got.view(np.uint32), np.array([[0, -0.0, 1], [1, 2, 3]], np.float32).view(np.uint32))


def test_files_larger_than_a_chunk(tmp_path, monkeypatch):
    """Lines cross the border between chunks, and errors name the right row."""
    monkeypatch.setattr(kernels, "cores", lambda: 3)
    rows = np.random.default_rng(5).normal(size=(9000, 100)).astype(np.float32)
    keys = [f"w{i}" for i in range(9000)]
    formats.write(tmp_path / "v.txt", keys, rows)
    assert (tmp_path / "v.txt").stat().st_size > 2 * (3 << 20)
    got_keys, got = formats.read(tmp_path / "v.txt")
    assert got_keys == keys
    assert_array_equal(got, rows)
    lines = (tmp_path / "v.txt").read_bytes().splitlines(keepends=True)
    lines[8000] = lines[8000].replace(b" ", b" x", 1)
    (tmp_path / "v.txt").write_bytes(b"".join(lines))
    with pytest.raises(FormatError, match=r"v\.txt:8001: expected 100 numbers after 'w7999', got b'x"):
        formats.read(tmp_path / "v.txt")
