"""The one door to compiled code: nothing else imports embfast._cpu."""

try:
    from embfast import _cpu
except ImportError as error:
    raise ImportError(
        f"embfast's compiled module did not load ({error}). Install the package with a C++ compiler at hand: "
        "`pip install .` in a checkout, or `pip install embfast`."
    ) from error
