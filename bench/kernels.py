"""Speed of the training kernels on one core, compared with the limits of the core.

python -m bench.kernels
python -m bench.kernels --dims 100 --tokens 500000 --repeats 3
EMBFAST_ISA=avx2 python -m bench.kernels

The text is sampled from Zipf's law, with window 5, 5 negatives, sample 1e-3 and the batches of Word2Vec. Kernels run
alternately; times are CPU seconds, medians over --repeats. Every kernel is first compared with the numpy reference.

Useful FLOPs: each pair of an input and an output row costs three multiply-adds per column (the score, and an update of
either row), each counted as two. CBOW and PV-DM sum their window and add the gradient to its rows: one addition each
per column and pair of center and context. PV-DM with concatenation has rows of (1 + 2 * window) * D columns, and only
the second addition. A word that occurs twice in a batch counts as two rows, though the kernel merges them. The peak is
that of float32 multiply-adds in registers (avx512bf16 does up to twice as many). Bandwidths are those of reads, from
arrays of half the size of L1, L2 and L3, and from DRAM. Output bytes are those of the output rows that a word reads and
writes, once each: the traffic to memory if caches do not hold them.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine_and_commit, report
from embfast import kernels, reference
from embfast.training.blocks import make_blocks
from embfast.training.sampling import NegativeSharing, keep_thresholds, negative_sharing, noise_weights
from embfast.training.tables import initial_weights

WINDOW, NEGATIVES, SAMPLE, DOCUMENT = 5, 5, 1e-3, 1000
SEED, EPOCH, NOISE = 1, 0, 1 << 18


@dataclass(frozen=True)
class Kernel:
    """A mode of kernels.train_sequences."""

    cbow: bool = False
    hs: bool = False
    negatives_shared: bool = True
    documents: bool = False  # each document has its own row
    words: bool = True
    concat: bool = False

    @property
    def pieces(self) -> int:
        """Number of rows that a hidden row concatenates."""
        return 1 + 2 * WINDOW if self.concat else 1

    def sharing(self) -> NegativeSharing:
        if not self.words:
            return NegativeSharing(True, 1, NEGATIVES, 1.0)
        return negative_sharing(self.cbow, self.hs, 0 if self.hs else NEGATIVES, self.negatives_shared, WINDOW)


KERNELS = {
    "skip-gram": Kernel(),
    "skip-gram, pairs": Kernel(negatives_shared=False),
    "CBOW": Kernel(cbow=True),
    "skip-gram, hs": Kernel(hs=True),
    "PV-DBOW": Kernel(documents=True, words=False),
    "PV-DM": Kernel(cbow=True, documents=True),
    "PV-DM, concat": Kernel(cbow=True, documents=True, concat=True),
}


class Text:
    """Ids sampled from Zipf's law, frequent words first, in documents of DOCUMENT tokens."""

    def __init__(self, n_tokens: int, n_words: int) -> None:
        rng = np.random.default_rng(SEED)
        share = 1.0 / np.arange(1, n_words + 1)
        drawn = np.searchsorted(np.cumsum(share) / share.sum(), rng.random(n_tokens)).clip(max=n_words - 1)
        counts = np.bincount(drawn, minlength=n_words)
        order = np.argsort(-counts, kind="stable")
        rank = np.empty(n_words, np.int32)
        rank[order] = np.arange(n_words, dtype=np.int32)
        self.ids, self.counts = rank[drawn], np.maximum(counts[order], 1)
        self.offsets = np.minimum(np.arange(0, n_tokens + DOCUMENT, DOCUMENT), n_tokens)
        self.blocks = make_blocks(self.offsets)
        self.keep = keep_thresholds(self.counts, SAMPLE)


def arguments(kernel: Kernel, text: Text, dim: int, how: Any = kernels, spread: float = 0.0) -> tuple:
    """Arguments of train_sequences with new weights; `spread` > 0 in all tables gives scores that are not near zero."""
    n, dtype = len(text.counts), np.float32 if how is kernels else np.float64
    n_documents = len(text.offsets) - 1
    tables = {
        "w_in": n + kernel.concat if kernel.words else None,
        "w_docs": n_documents if kernel.documents else None,
        "w_out": None if kernel.hs else n,
        "w_nodes": n - 1 if kernel.hs else None,
    }
    rng = np.random.default_rng(SEED)
    for name, rows in tables.items():
        if rows is not None:
            inputs = name in ("w_in", "w_docs")
            pieces = 1 if inputs else kernel.pieces
            table = kernels.weight_table(rows, kernels.padded(dim) * pieces)
            initial_weights(table, dim, SEED) if inputs else table.fill(0.0)
            if spread:
                part = table.reshape(rows, pieces, -1)[:, :, :dim]
                part[:] = spread * pieces**-0.5 * rng.standard_normal(part.shape)
            tables[name] = table.astype(dtype) if dtype != np.float32 else table
    share = kernel.sharing()
    job = kernels.sequence_job(
        dim=dim,
        window=WINDOW,
        shrink=kernel.words and not kernel.concat,
        cbow=kernel.cbow,
        words=kernel.words,
        concat=kernel.concat,
        **share._asdict(),
        seed=SEED,
        epoch=EPOCH,
        lr_first=0.025,
        lr_last=0.025,
        tokens_total=len(text.ids),
    )
    arrays = {
        **tables,
        "tag_offsets": np.arange(n_documents + 1, dtype=np.int64) if kernel.documents else None,
        "tags": np.arange(n_documents, dtype=np.int32) if kernel.documents else None,
        "ids": text.ids,
        "offsets": text.offsets,
        "blocks": text.blocks,
        "keep": text.keep,
        "noise": None if kernel.hs else how.NoiseTable(noise_weights(text.counts, 0.75)).sample(NOISE, SEED, EPOCH),
        "tree": how.HuffmanTree(text.counts) if kernel.hs else None,
    }
    return job, arrays, 0, len(text.blocks) - 1, 1


def check(kernel: Kernel, dim: int) -> None:
    """Compares the kernel with the reference: a fast wrong answer is not a result."""
    text = Text(400, 60)
    fast, slow = (arguments(kernel, text, dim, how, spread=dim**-0.25) for how in (kernels, reference))
    rounded = kernels.isa() == "avx512bf16"  # its factors have 8 bits
    fast_tally, slow_tally = kernels.train_sequences(*fast), reference.train_sequences(*slow)
    np.testing.assert_allclose(fast_tally, slow_tally, rtol=4e-3 if rounded else 1e-4)
    for name in ("w_in", "w_docs", "w_out", "w_nodes"):
        if fast[1][name] is not None:
            atol = 3e-3 if rounded else 1e-5
            np.testing.assert_allclose(fast[1][name], slow[1][name], rtol=1e-3, atol=atol, err_msg=name)


def work(kernel: Kernel, text: Text, dim: int) -> dict[str, int]:
    """Examples of an epoch, useful FLOPs and bytes of output rows, computed from the kernel's draws."""
    share = kernel.sharing()
    keep = reference.Stream(SEED, EPOCH, reference.Purpose.SUBSAMPLE)
    width = reference.Stream(SEED, EPOCH, reference.Purpose.WINDOW)
    paths = np.diff(kernels.HuffmanTree(text.counts).offsets) if kernel.hs else None
    centers = contexts = rows = nodes = batches = tokens = 0
    for begin, end in zip(text.blocks[:-1].tolist(), text.blocks[1:].tolist(), strict=True):
        kept = 0
        for sentence in reference.subsample(
            text.ids, text.offsets[text.offsets >= begin][:64], begin, end, text.keep, keep
        ):
            n = len(sentence)
            if n == 0:
                continue
            center = np.arange(n)
            batch = center // share.centers
            first = batch * share.centers
            radius = 1 + reference.below(width(begin + kept + first), WINDOW)
            near = np.minimum(center + radius, n - 1) - np.maximum(center - radius, 0)
            last = np.minimum(first + share.centers, n) - 1
            reach = np.minimum(last + radius, n - 1) - np.maximum(first - radius, 0) + 1
            contexts += int(near.sum())
            centers += int((near > 0).sum())
            rows += int((reach - (share.centers == 1))[center == first].sum())
            batches += -(-n // share.centers)
            tokens += n
            if paths is not None:
                nodes += int((near * paths[sentence]).sum())
            kept += n
    examples = centers if kernel.cbow else contexts
    outputs = tokens + batches * share.drawn
    if kernel.documents:  # the row of the document is in the window of every token
        examples = tokens
        additions = {(True, False): 2 * (contexts + tokens), (True, True): tokens * kernel.pieces}
        pairs, additions = tokens * (1 + share.drawn), additions.get((kernel.cbow, kernel.concat), 0)
    elif kernel.cbow:
        pairs, additions = centers * (1 + share.drawn), 2 * contexts
    elif kernel.hs:
        pairs, additions, outputs = nodes, 0, 0
    elif kernel.negatives_shared:
        pairs, additions = contexts + rows * share.drawn, 0
    else:
        pairs, additions, outputs = contexts * (1 + share.drawn), 0, tokens + contexts * share.drawn
    hidden = kernels.padded(dim) * kernel.pieces
    flop = dim * (6 * pairs * kernel.pieces + additions)
    return {"examples": examples, "flop": flop, "output_bytes": 8 * hidden * outputs}


def roofline(seconds: float) -> dict[str, float]:
    """FLOP/s and bytes/s of one core, each measured for `seconds`. Unknown cache sizes get common values."""
    bytes_of = {"L1": 32 << 10, "L2": 1 << 20, "L3": 16 << 20}
    cache = Path("/sys/devices/system/cpu/cpu0/cache")
    for index in cache.glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            size = int((index / "size").read_text().strip().removesuffix("K")) << 10
            bytes_of[f"L{(index / 'level').read_text().strip()}"] = size
    sizes = {name: size // 2 for name, size in bytes_of.items() if name in ("L1", "L2", "L3")}
    sizes["DRAM"] = max(4 * bytes_of["L3"], 256 << 20)
    numbers = kernels.weight_table(1, sizes["DRAM"] // 4).ravel()
    numbers[:] = 1.0  # memory that was never written to is a single page of zeros
    return {
        "fma_flop_per_s": kernels.fma_peak(seconds),
        **{
            f"{name}_bytes_per_s": kernels.read_bandwidth(numbers[: n // 4096 * 1024], seconds)
            for name, n in sizes.items()
        },
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--words", type=int, default=70_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="Time to measure each limit of the machine, in seconds."
    )
    parser.add_argument("--json", type=Path, help="File to write the results to, in addition.")
    args = parser.parse_args(argv)

    limits = roofline(args.seconds)
    peak = limits["fma_flop_per_s"]
    bandwidths = ", ".join(f"{k.split('_')[0]} {v / 1e9:.0f}" for k, v in limits.items() if k.endswith("bytes_per_s"))
    print(f"{kernels.isa()}, one core: {peak / 1e9:.1f} GFLOP/s of multiply-adds; reads GB/s: {bandwidths}\n")
    print(
        f"{'':18} {'D':>4} {'M words/CPU s':>14} {'(least, most)':>16} {'GFLOP/s':>8} {'of peak':>8} {'FLOP/word':>10} "
        f"{'output GB/s':>11}"
    )
    text, results = Text(args.tokens, args.words), []
    for dim in args.dims:
        problems = {}
        for name in args.kernels:
            kernel = KERNELS[name]
            check(kernel, dim)
            problems[name] = (arguments(kernel, text, dim), work(kernel, text, dim))
        seconds: dict[str, list[float]] = {name: [] for name in problems}
        for _ in range(args.repeats):
            for name, (problem, amount) in problems.items():
                begin = time.process_time()
                _, examples, _ = kernels.train_sequences(*problem)
                seconds[name].append(time.process_time() - begin)
                assert examples == amount["examples"], (name, examples, amount)
        for name, (_, amount) in problems.items():
            times, flop = seconds[name], amount["flop"]
            middle = statistics.median(times)
            row = {
                "kernel": name,
                "dim": dim,
                "words_per_cpu_s": args.tokens / middle,
                "least": args.tokens / max(times),
                "most": args.tokens / min(times),
                "flop_per_s": flop / middle,
                "of_peak": flop / middle / peak,
                "flop_per_word": flop / args.tokens,
                "output_bytes_per_s": amount["output_bytes"] / middle,
            }
            results.append(row)
            extremes = f"({row['least'] / 1e6:.3f}, {row['most'] / 1e6:.3f})"
            print(
                f"{name:18} {dim:4} {row['words_per_cpu_s'] / 1e6:14.3f} {extremes:>16} "
                f"{row['flop_per_s'] / 1e9:8.1f} {100 * row['of_peak']:6.1f} % {row['flop_per_word']:10,.0f} "
                f"{row['output_bytes_per_s'] / 1e9:11.1f}"
            )
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    result = {"settings": settings, "isa": kernels.isa(), "limits": limits, "kernels": results}
    result["machine"] = machine_and_commit()
    report(result, args.json)


if __name__ == "__main__":
    main()
