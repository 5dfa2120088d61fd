"""embfast doctor: reports what this machine can run."""

import json

from embfast import __version__
from embfast.cli.common import Json, command

_EXTRAS = {  # purpose of an optional package, and the extra that installs it
    "numba": ("random walks", "graph"),
    "torch": ("images and captions", "multimodal"),
    "pillow": ("images", "images"),
    "onnx": ("export of networks to ONNX", "onnx"),
    "pyarrow": ("Parquet", "parquet"),
    "usearch": ("approximate search", "index"),
    "scipy": ("SciPy matrices, SVD", "scipy"),
    "matplotlib": ("plots", "plot"),
}


@command("doctor")
def doctor(json_output: Json = False) -> None:
    """Show what this machine can run: versions, instruction set, CUDA devices, and what to install for the rest."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import numpy as np

    from embfast import kernels

    rows = [
        (
            "embfast",
            f"{__version__}, Python {platform.python_version()}, numpy {np.__version__}, {platform.platform()}",
        ),
        ("CPU kernels", f"{kernels.isa()}, {kernels.cores()} cores"),
        *kernels.describe_devices(),
    ]
    for package, (purpose, extra) in _EXTRAS.items():
        try:
            rows.append((package, f"{version(package)}, for {purpose}"))
        except PackageNotFoundError:
            rows.append((package, f'missing; for {purpose}: pip install "embfast[{extra}]"'))
    if json_output:
        print(json.dumps(dict(rows)))
        return
    for name, text in rows:
        print(f"{name:<20} {text}")
