"""Decimal numbers in text, read and written: the reference of csrc/text/decimals.h."""

import re
from fractions import Fraction

import numpy as np

_DECIMAL = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def nearest_float32(token):
    """The float32 nearest to a decimal in bytes, ties to even; None if the token is not a number, overflows, or is a
    nonzero number that rounds to 0.

    >>> nearest_float32(b"+1e-1")
    np.float32(0.1)
    """
    if not _DECIMAL.fullmatch(token):
        return None
    with np.errstate(over="ignore", under="ignore"):
        near = np.float32(float(token))  # rounded twice: at most one step away
    if not np.isfinite(near) or (near == 0 and re.search(rb"[1-9]", re.split(rb"[eE]", token)[0])):
        return None
    exact = Fraction(token.decode())
    with np.errstate(over="ignore", under="ignore"):
        steps = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    steps = [step for step in steps if np.isfinite(step)]
    found = min(steps, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))
    return np.copysign(found, np.float32(-1 if token.startswith(b"-") else 1))


def parse_lines(text, dim, threads):
    """Reference of kernels.parse_lines, one number at a time."""
    bounds, row, plain, values = [], [], [], []
    begin = 0
    for line in re.findall(rb"[^\n]*\n", text):
        stop = len(line) - 1
        key, *tokens = line.split() or [b""]
        fits = stop >= 2 * dim
        numbers = [nearest_float32(token) for token in tokens] if fits and len(tokens) == dim else []
        plain.append(len(numbers) == dim and None not in numbers)
        row.append(len(values) if fits else -1)
        if fits:
            values.append(numbers if plain[-1] else [np.nan] * dim)
        first = line.index(key) if plain[-1] else 0
        bounds.append((begin + first, begin + (first + len(key) if plain[-1] else stop)))
        begin += len(line)
    return (
        np.array(bounds, np.int64).reshape(-1, 2),
        np.array(row, np.int64),
        np.array(plain, bool),
        np.array(values, np.float32).reshape(-1, dim),
    )


def format_lines(keys, rows, separator, threads):
    """Reference of kernels.format_lines: of the spellings that read back to the same float32, the shortest, then the
    nearest; without an exponent unless the exponent makes it shorter.
    """

    def shortest(x):
        if x == 0:
            return "-0" if np.signbit(x) else "0"
        fixed = str(int(x)) if abs(x) >= 2**24 else np.format_float_positional(x, trim="-")  # large: exact
        mantissa, exponent = np.format_float_scientific(x, trim="-", exp_digits=2).split("e")
        scientific = f"{mantissa}e{exponent}"
        return fixed if len(fixed) <= len(scientific) else scientific

    lines = [[shortest(x) for x in row] for row in rows]
    if keys is not None:
        lines = [[key.decode(), *line] for key, line in zip(keys, lines, strict=True)]
    return "".join(separator.join(line) + "\n" for line in lines).encode()
