"""Ternary rows on one core: packing compared with memory bandwidth, search compared with BLAS on float32.

OPENBLAS_NUM_THREADS=1 python -m bench.ternary                 8,192 rows of 12,416 features, as of VGG16
OPENBLAS_NUM_THREADS=1 python -m bench.ternary --rows 32768 --json results/ternary.json
EMBFAST_ISA=avx2 OPENBLAS_NUM_THREADS=1 python -m bench.ternary

Runs are interleaved; figures are CPU seconds, medians over --repeats. Every result is checked before it is timed. The
speed of packing counts the bytes of the features alone, although levels write another quarter of them. The bandwidth is
that of kernels.read_bandwidth on 128 MB of the features, the best of many passes. A search returns the 10 best rows;
BLAS only multiplies.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.machine import machine_and_commit, report
from embfast import kernels
from embfast.files.ternary import LOWER, UPPER, TernaryMatrix, thresholds

K = 10
READ = 1 << 25  # floats, 128 MB, read to measure bandwidth; a pass is short enough to run uninterrupted


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """CPU seconds of each run, interleaved: median, best and worst."""
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    return {name: {"median": statistics.median(s), "best": min(s), "worst": max(s)} for name, s in seconds.items()}


def random_features(n: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features in huge pages, and their means and standard deviations."""
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(0, 1, dim), rng.lognormal(0, 1, dim)
    features = kernels.weight_table(n, dim)[:, :dim]
    features = features if features.flags.c_contiguous else np.ascontiguousarray(features)
    for row in features:
        row[:] = mean + sd * rng.standard_normal(dim)
    return features, mean, sd


def bench_making(features: np.ndarray, mean: np.ndarray, sd: np.ndarray, repeats: int) -> dict:
    """Speed of packing, in GB/s of features."""
    low, high = thresholds(mean, sd)
    planes, out = kernels.bit_planes(*features.shape), np.empty(features.shape, np.int8)
    kernels.ternary_pack(features, low, high, planes)
    kernels.ternary_levels(features, low, high, out)
    z = (features[:64] - mean) / sd
    few = np.where(z > UPPER, 1, np.where(z < LOWER, -1, 0))
    assert np.array_equal(out[:64], few)
    assert np.array_equal(TernaryMatrix(planes, features.shape[1])[:64], few)
    flat = features.reshape(-1)[: min(features.size // 1024 * 1024, READ)]

    def plainly() -> np.ndarray:
        z = (features[:64] - mean.astype(np.float32)) / sd.astype(np.float32)
        return (z > UPPER).astype(np.int8) - (z < LOWER).astype(np.int8)

    seconds = take_turns(
        {
            "pack": lambda: kernels.ternary_pack(features, low, high, planes),
            "levels": lambda: kernels.ternary_levels(features, low, high, out),
            "unpack": lambda: kernels.ternary_unpack(planes, out),
            "numpy": plainly,
        },
        repeats,
    )
    reads = [kernels.read_bandwidth(flat, 0.1) for _ in range(repeats)]
    size = {"pack": features.nbytes, "levels": features.nbytes, "unpack": out.nbytes, "numpy": features[:64].nbytes}
    rates = {name: {which: size[name] / s / 1e9 for which, s in found.items()} for name, found in seconds.items()}
    rates["read"] = {"median": statistics.median(reads) / 1e9, "best": max(reads) / 1e9, "worst": min(reads) / 1e9}
    return rates


def bench_search(matrix: TernaryMatrix, numbers: list[int], repeats: int) -> dict:
    """Milliseconds of a search, and of the products alone by BLAS, for each number of queries at a time."""
    floats = matrix.to_float32()
    results = {}
    for m in numbers:
        queries, columns = matrix.take(slice(0, m)), np.ascontiguousarray(floats[:m].T)
        dots = (floats @ columns).T.astype(np.float64)  # exact: integers below 2^24
        ids, _ = matrix.top(queries, K, threads=1)
        order = np.argsort(-dots * np.abs(dots) / np.maximum(matrix.nonzeros, 1), axis=1, kind="stable")
        assert np.array_equal(ids, order[:, :K])
        product = columns[:, 0].copy() if m == 1 else columns
        seconds = take_turns(
            {
                "ternary": lambda queries=queries: matrix.top(queries, K, threads=1),
                "float32": lambda product=product: floats @ product,
            },
            repeats,
        )
        results[m] = {name: {which: s * 1e3 for which, s in found.items()} for name, found in seconds.items()}
    return results


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=12_416)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write all figures here too")
    args = parser.parse_args(words)

    features, mean, sd = random_features(args.rows, args.dim)
    making = bench_making(features, mean, sd, args.repeats)
    matrix = TernaryMatrix.from_features(features, *thresholds(mean, sd))
    del features
    search = bench_search(matrix, args.queries, args.repeats)

    machine = {**machine_and_commit(), "kernels": kernels.isa(), "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS")}
    print(f"{args.rows} x {args.dim}, median of {args.repeats}, one core; {json.dumps(machine)}")
    print(f"bytes per row: {matrix.nbytes / len(matrix):,.0f}, as float32 {4 * matrix.dim:,}\n")
    read = making["read"]["median"]
    print(f"{'GB/s of features':24}{'median':>10}{'of reading':>12}")
    for name, rate in making.items():
        print(f"{name:24}{rate['median']:10.1f}{100 * rate['median'] / read:10.0f} %")
    print(f"\n{'queries at once, ms':24}{'ternary':>10}{'float32':>10}{'ratio':>8}")
    for m, row in search.items():
        ours, other = row["ternary"]["median"], row["float32"]["median"]
        print(f"{m:<24}{ours:10.2f}{other:10.2f}{other / ours:7.1f}x")
    report({"rows": args.rows, "dim": args.dim, "machine": machine, "making": making, "search": search}, args.json)


if __name__ == "__main__":
    main()
