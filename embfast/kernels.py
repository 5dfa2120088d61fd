"""The one door to compiled code: nothing else imports embfast._cpu."""

try:
    from embfast import _cpu
except ImportError as error:
    raise ImportError(
        f"embfast's compiled module did not load ({error}). Install the package with a C++ compiler at hand: "
        "`pip install .` in a checkout, or `pip install embfast`."
    ) from error

# Text to ids (csrc/text.h): used by embfast.corpus, which turns its faults into errors with a file and a line.
TextEncoder = _cpu.TextEncoder
