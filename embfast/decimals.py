"""float32 numbers to decimal text and back, a block of lines at a time, in plain numpy.

Reading gives the bits of np.float32(float(token)); writing gives the shortest decimal that reads back to the same bits.
Digits are parsed eight at a time inside one 64-bit word (D. Lemire, "Quickly parsing eight digits", 2018) and the
quotient of two exact doubles is correctly rounded (W. Clinger, 1990), so only exponents and long tokens need float().
"""

import numpy as np

_U64 = np.uint64
_ZEROS = _U64(0x3030303030303030)
# Keeps the last `count` of eight characters: the first character is the lowest byte.
_LAST = np.array([0] + [(0xFFFFFFFFFFFFFFFF << (8 * (8 - n))) & 0xFFFFFFFFFFFFFFFF for n in range(1, 9)], dtype=_U64)
_POWERS = 10.0 ** np.arange(16)
_MAX_DIGITS = 15  # below 2^53, so that a double holds them exactly

_FOUR_DIGITS = np.array([f"{i:04d}" for i in range(10_000)], dtype="S4").view("<u4")
_TRAILING_ZEROS = np.array([4 if i == 0 else len(s := str(i)) - len(s.rstrip("0")) for i in range(10_000)], np.int64)


def _eight_digits(words: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number that the last `count` (0..8) characters of each word spell, and a word that is 0 if all are digits."""
    digits = (words ^ _ZEROS) & _LAST[count]
    not_digits = ((digits + _U64(0x7676767676767676)) | digits) & _U64(0x8080808080808080)
    digits = digits * _U64(10) + (digits >> _U64(8))
    low = (digits & _U64(0x000000FF000000FF)) * _U64(0x000F424000000064)
    high = ((digits >> _U64(16)) & _U64(0x000000FF000000FF)) * _U64(0x0000271000000001)
    return (low + high) >> _U64(32), not_digits


def _parse_tokens(words: np.ndarray, text: bytes, start: np.ndarray, dot: np.ndarray, end: np.ndarray) -> np.ndarray:
    """float64 per token text[start:end] whose point is at `dot` (= end when it has none); NaN where it is no number.

    words[p] holds the eight characters that end before position p.
    """
    negative = np.frombuffer(text, dtype=np.uint8)[start] == 45
    whole = dot - start - negative
    decimals = np.maximum(end - dot - 1, 0)
    fast = (whole >= 0) & (whole <= 8) & (whole + decimals <= _MAX_DIGITS) & (whole + decimals > 0)
    whole = np.where(fast, whole, 0)
    decimals = np.where(fast, decimals, 0)
    mantissa, not_digits = _eight_digits(words[dot], whole)
    scale = _POWERS[decimals]
    mantissa = mantissa.astype(np.float64) * scale
    digits, bad = _eight_digits(words[end], np.minimum(decimals, 8))
    not_digits |= bad
    mantissa += digits
    if decimals.max(initial=0) > 8:
        digits, bad = _eight_digits(words[np.maximum(end - 8, 0)], np.maximum(decimals - 8, 0))
        not_digits |= bad
        mantissa += digits * 1e8
    values = np.divide(mantissa, scale, out=mantissa)
    np.negative(values, out=values, where=negative)
    for i in np.flatnonzero(~fast | (not_digits != 0)):
        values[i] = to_float(text[start[i] : end[i]], np.nan)
    return values


def to_float(token: bytes, default: float | None = None) -> float | None:
    """float(token) without the digit grouping of Python source ("1_000"); `default` where it is no number."""
    try:
        return default if b"_" in token else float(token)
    except ValueError:
        return default


def parse_lines(text: bytes, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads lines of a key and `dim` numbers, split by single spaces or tabs; a space or CR may end the line.

    `text` holds whole lines and ends with a newline. Returns per line: its start and the end of its key (int64, byte
    positions in text), its numbers (float32 (lines, dim)) and whether it is plain (bool). A line that is not plain
    has no valid numbers here: it is malformed, or spaced in some other way, or holds something float() reads as NaN.
    """
    padded = np.frombuffer(b"\0" * 8 + text, dtype=np.uint8)
    words = np.lib.stride_tricks.as_strided(padded[:8].view("<u8"), shape=(len(text) + 1,), strides=(1,))
    codes = padded[8:]
    marks = np.flatnonzero((codes <= 32) | (codes == 46))
    mark_codes = codes[marks]
    separators = np.flatnonzero(mark_codes != 46)  # indices into marks: between two of them lie the dots of one token
    ends = np.flatnonzero(mark_codes[separators] == 10)  # indices into separators, one per line
    firsts = np.concatenate(([0], ends[:-1] + 1))
    positions = marks[separators]
    line_ends = positions[ends]
    starts = np.concatenate(([0], line_ends[:-1] + 1))
    key_ends = positions[firsts]
    count = ends - firsts
    trailing = (count == dim + 1) & (positions[np.maximum(ends - 1, 0)] == line_ends - 1)
    plain = ((count == dim) | trailing) & (key_ends > starts)
    odd = np.flatnonzero(~np.isin(mark_codes[separators], (9, 10, 13, 32)))  # a NUL, say: part of a key, not a space
    plain[np.searchsorted(ends, odd)] = False

    values = np.full((len(ends), dim), np.nan, dtype=np.float32)
    bounds = firsts[plain, None] + np.arange(dim + 1)
    start = (positions[bounds[:, :-1]] + 1).ravel()
    end = positions[bounds[:, 1:]].ravel()
    first_mark = separators[bounds[:, :-1]].ravel()
    dots = separators[bounds[:, 1:]].ravel() - first_mark - 1
    dot = np.where(dots == 0, end, marks[first_mark + 1])
    with np.errstate(over="ignore"):  # 1e39 is inf in float32, as np.float32(float("1e39")) is
        values[plain] = _parse_tokens(words, text, start, dot, end).reshape(-1, dim)
    plain[plain] = ~np.isnan(values[plain]).any(axis=1)
    return starts, key_ends, values, plain


def format_rows(rows: np.ndarray, separator: bytes = b" ") -> list[bytes]:
    """One bytes per row of float32 (n, dim): each number after a separator, in the fewest digits that keep its bits."""
    values = np.ascontiguousarray(rows, dtype=np.float32)
    flat = values.ravel()
    size = np.abs(flat).astype(np.float64)
    plain = ((size >= 1e-4) & (size < 10)) | (size == 0)  # the rest is written one by one, with an exponent if shorter
    size = np.where(plain, size, 0.0)

    # Nine significant digits are always enough; fewer are tried from the right. All are exact integers in a double.
    leading_zeros = (size < 1e-3).astype(np.int64) + (size < 1e-2) + (size < 1e-1) + (size < 1)
    scale = _POWERS[8 + leading_zeros]
    nine = np.rint(size * scale)
    mantissa = nine
    for unit in (10.0, 100.0, 1000.0):
        shorter = np.rint(size * (scale / unit)) * unit
        mantissa = np.where((shorter / scale).astype(np.float32) == size, shorter, mantissa)
    fixed = (mantissa * _POWERS[4 - leading_zeros]).astype(np.int64)  # twelve decimals

    whole, decimals = np.divmod(fixed, 10**12)
    first, rest = np.divmod(decimals, 10**8)
    second, third = np.divmod(rest, 10**4)
    cells = np.zeros((len(flat), 4), dtype="<u4")
    for column, group in enumerate((first, second, third), start=1):
        cells[:, column] = _FOUR_DIGITS[group]
    zeros = np.where(third > 0, _TRAILING_ZEROS[third], 4 + _TRAILING_ZEROS[second])
    zeros = np.where(third + second > 0, zeros, 8 + _TRAILING_ZEROS[first])

    text = cells.view(np.uint8)
    text[:, 0] = separator[0]
    text[:, 1] = np.signbit(flat) * np.uint8(45)
    text[:, 2] = whole + 48
    text[:, 3] = 46
    text &= _KEEP[12 - zeros]
    exceptions = np.flatnonzero(~plain)
    if len(exceptions):
        shortest = [separator + _shortest(x) for x in flat[exceptions]]
        text[exceptions] = np.array(shortest, dtype="S16").view(np.uint8).reshape(-1, 16)
    lines = memoryview(text).cast("B")
    width = 16 * values.shape[1]
    return [bytes(lines[i * width : (i + 1) * width]).translate(None, b"\0") for i in range(len(values))]


def _keep_table() -> np.ndarray:
    """uint8 (13, 16): which bytes of a cell [separator, sign, digit, point, 12 decimals] n decimals leave standing."""
    keep = np.zeros((13, 16), dtype=np.uint8)
    keep[:, :3] = 255
    for decimals in range(1, 13):
        keep[decimals, 3 : 4 + decimals] = 255
    return keep


_KEEP = _keep_table()


def _shortest(value: np.float32) -> bytes:
    """At most fifteen characters: a sign, nine digits, a point and a two-digit exponent."""
    for digits in (6, 7, 8):
        text = b"%.*g" % (digits, value)
        if np.float32(float(text)) == value:
            return text
    return b"%.9g" % value
