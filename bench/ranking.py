"""Ranking losses, forward and backward, against plain torch code that holds the whole matrix of similarities.

python -m bench.ranking
python -m bench.ranking --threads 2 --sizes 4096 --modes sum max --repeats 5 --json results/ranking.json

Rows are normalised vectors of size --dim. "mixed" captions are so far from their images that every tile has many
negatives within the margin, as at the start of training; "apart" captions are close to their images and far from all
others, as at its end, when "sum" skips the products of a tile. The naive form costs the same on both. The tiled and the
naive form alternate; times are CPU seconds of the process and wall time, medians over --repeats. Extra memory is the
peak resident set of one forward and backward pass above the level before it, measured in a separate process; it
includes the gradients of both sides. Losses and gradients are compared before anything is timed. The naive form is
skipped if its roughly six matrices would take more than --naive-gb.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.machine import machine_and_commit, report
from embfast.multimodal.ranking import info_nce, ranking_loss

MARGIN, TEMPERATURE = 0.2, 0.07
SEED = 0


def rows(n: int, dim: int, kind: str) -> tuple[Tensor, Tensor]:
    """Normalised images and captions that require gradients."""
    draw = torch.Generator().manual_seed(SEED)
    images = torch.nn.functional.normalize(torch.randn(n, dim, generator=draw), dim=1)
    noise = torch.randn(n, dim, generator=draw) / dim**0.5
    captions = torch.nn.functional.normalize(images + {"mixed": 10.0, "apart": 1.5}[kind] * noise, dim=1)
    return images.requires_grad_(), captions.requires_grad_()


def naive(images: Tensor, captions: Tensor, mode: str, similarity: str) -> Tensor:
    """The common form of the losses of UVS, VSE++, CLIP and order embeddings, summed over the batch."""
    if similarity == "order":
        scores = -(captions - images[:, None]).clamp(min=0).square().sum(2)
    else:
        scores = images @ captions.T
    if mode == "nce":
        target = torch.arange(len(images))
        logits = scores / TEMPERATURE
        return sum(torch.nn.functional.cross_entropy(x, target, reduction="sum") for x in (logits, logits.T))
    paired = scores.diagonal()
    own = torch.eye(len(images), dtype=torch.bool)
    by_image = (MARGIN + scores - paired[:, None]).clamp(min=0).masked_fill(own, 0)
    by_caption = (MARGIN + scores - paired).clamp(min=0).masked_fill(own, 0)
    if mode == "max":
        by_image, by_caption = by_image.max(1).values, by_caption.max(0).values
    return by_image.sum() + by_caption.sum()


def tiled(images: Tensor, captions: Tensor, mode: str, similarity: str) -> Tensor:
    if mode == "nce":
        return info_nce(images, captions, temperature=TEMPERATURE, similarity=similarity)
    return ranking_loss(images, captions, mode=mode, margin=MARGIN, similarity=similarity)


FORMS = {"tiled": tiled, "naive": naive}


def check(mode: str, similarity: str, dim: int, kind: str) -> None:
    """AssertionError unless both forms give the same losses and gradients."""
    images, captions = (x.detach().double().requires_grad_() for x in rows(130, dim, kind))
    losses = [form(images, captions, mode, similarity) for form in FORMS.values()]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(loss, (images, captions)) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def take_turns(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, dict[str, float]]:
    """Median CPU and wall seconds of each run; the runs alternate."""
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.process_time(), time.perf_counter()
            run()
            cpu[name].append(time.process_time() - begin[0])
            wall[name].append(time.perf_counter() - begin[1])
    return {
        name: {"cpu_s": statistics.median(cpu[name]), "best_s": min(cpu[name]), "wall_s": statistics.median(wall[name])}
        for name in runs
    }


def memory(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10


def measure_peak(form: str, mode: str, similarity: str, kind: str, n: int, dim: int) -> int:
    """Extra bytes of one pass, for a fresh process. A small pass first loads what is loaded once."""
    FORMS[form](*rows(64, dim, kind), mode, similarity).backward()
    images, captions = rows(n, dim, kind)
    ctypes.CDLL(None).malloc_trim(0)  # otherwise the pass would reuse freed memory, which the peak does not count
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    FORMS[form](images, captions, mode, similarity).backward()
    return memory("VmHWM") - before


def peak(*setting: Any) -> int:
    """measure_peak in a process started for it."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-m", "bench.ranking", "--threads", threads, "--peak", json.dumps(setting)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return int(done.stdout)


def measure(mode: str, kind: str, n: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times and extra memory of both forms on n rows."""
    images, captions = rows(n, args.dim, kind)
    whole = 24 * n * n * (args.dim / 4 if args.similarity == "order" else 1)
    forms = [form for form in FORMS if form == "tiled" or whole <= args.naive_gb * 2**30]

    def step(form: str) -> None:
        images.grad = captions.grad = None
        FORMS[form](images, captions, mode, args.similarity).backward()

    for form in forms:
        step(form)
    repeats = args.repeats if n > 512 else 10 * args.repeats
    times = take_turns({form: lambda form=form: step(form) for form in forms}, repeats)
    for form in forms if not args.no_memory else ():
        times[form]["extra_bytes"] = peak(form, mode, args.similarity, kind, n, args.dim)
    return {"mode": mode, "rows": kind, "n": n, **times}


def line_of(row: dict[str, Any]) -> str:
    """A line of the table."""
    line = f"{row['mode']:5}{row['rows']:7}{row['n']:7}"
    for found in (row[form] for form in FORMS if form in row):
        extra = f"{found['extra_bytes'] / 2**20:7.0f}" if "extra_bytes" in found else " " * 7
        line += f"{1e3 * found['cpu_s']:11.1f} ({1e3 * found['best_s']:.1f})".rjust(20) + extra
    if "naive" in row:
        line += f"{row['tiled']['cpu_s'] / row['naive']['cpu_s']:7.2f}"
        line += f"{row['tiled']['wall_s'] / row['naive']['wall_s']:7.2f}"
    return line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 1024, 4096, 8192, 16384])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--modes", nargs="+", default=["sum", "max", "nce"], choices=["sum", "max", "nce"])
    parser.add_argument("--similarity", default="dot", choices=["dot", "order"])
    parser.add_argument("--rows", nargs="+", default=["mixed", "apart"], choices=["mixed", "apart"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-gb", type=float, default=0.5)
    parser.add_argument("--no-memory", action="store_true", help="times only; memory is read from Linux's /proc")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak:
        print(measure_peak(*json.loads(args.peak)))
        return
    print(f"{torch.get_num_threads()} threads, {args.similarity}, D={args.dim}; CPU ms (least), extra MiB\n")
    print(f"{'mode':5}{'rows':7}{'B':>7}{'tiled ms':>20}{'MiB':>7}{'naive ms':>20}{'MiB':>7}{'time':>7}{'wall':>7}")
    results = []
    for mode in args.modes:
        for kind in args.rows:
            check(mode, args.similarity, args.dim, kind)
            for n in args.sizes:
                results.append(measure(mode, kind, n, args))
                print(line_of(results[-1]), flush=True)
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "peak")}
    report({"settings": settings, "results": results, "machine": {**machine_and_commit(), "torch": torch.__version__}},
           args.json)  # fmt: skip


if __name__ == "__main__":
    main()
