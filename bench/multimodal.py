"""Steps and epochs of Multimodal on Flickr8k's captions, and retrieval on its test images.

python -m bench.multimodal --step                                       milliseconds per step, padded against packed
python -m bench.multimodal --epoch --features layer.npz                 CPU seconds of an epoch
python -m bench.multimodal --retrieval --features layer.npz fne.npz     recall on the test images; hours

Captions come from flickr8k/captions.tsv.zst in $EMBFAST_DATA; image vectors from files that `embfast images` wrote, or
any others keyed by image, with or without extension. 6,000 images train, 1,000 choose the epoch, 1,000 are ranked.

A step runs a GRU over a batch of captions, computes ranking_loss of its states against fixed rows, backpropagates,
clips the gradient and updates the weights by Adam. "padded" runs the GRU to the end of the longest caption of a random
batch and takes each caption's state at its own end; "packed" skips the padding by pack_padded_sequence; "bucketed" uses
Multimodal's batches of captions of similar length, packed without padding first. Figures are CPU seconds of this
process; the three alternate, and a ratio is the median over the rounds. Before timing, all three must give the same
rows for the same captions.

The landmark is the model of Kiros et al. 2014 with VGG19 features, as reported by its authors' code.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.nn.utils.rnn import pack_padded_sequence

from bench.machine import machine_and_commit, report, write_json
from embfast.multimodal.captions import Captions, encode, vocabulary
from embfast.multimodal.examples import Examples, Words
from embfast.multimodal.model import Multimodal
from embfast.multimodal.ranking import ranking_loss
from embfast.multimodal.towers import SequenceTower, into_space, pack
from embfast.vectors.vectors import Vectors

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EMBFAST_DATA", ROOT.parent / "shared" / "data"))
LANDMARK = ("UVS, VGG19 (landmark)", (22.3, 48.7, 59.8, 6), (14.9, 38.3, 51.6, 10))
LOSSES = {
    "sum": {"loss": "sum"},
    "max": {"loss": "max", "warmup": 1},
    "order": {"loss": "sum", "similarity": "order"},
}


def stem(key: str) -> str:
    return os.path.splitext(key.rsplit("/", 1)[-1])[0]


def read_features(path: Path) -> Vectors:
    """Reads vectors, keyed without extensions. Rows are normalised unless they are ternary."""
    vectors = Vectors.load(path)
    matrix = vectors.matrix
    if not np.isin(matrix[:8], (-1, 0, 1)).all():
        matrix = matrix / np.maximum(vectors.norms, 1e-12)[:, None]
    return Vectors([stem(key) for key in vectors.keys], matrix)


# ---- a step -------------------------------------------------------------------------------------------------------


def padded_rows(tower: SequenceTower, ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    table, lengths = padded(ids, offsets, rows)
    states = tower.cell(tower.words(table))[0]
    return states[lengths - 1, torch.arange(len(rows))]


def packed_rows(tower: SequenceTower, ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    table, lengths = padded(ids, offsets, rows)
    return tower.cell(pack_padded_sequence(tower.words(table), lengths, enforce_sorted=False))[1][0]


def our_rows(tower: SequenceTower, ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    return tower(pack(ids, offsets, rows))


def padded(ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = offsets[rows + 1] - offsets[rows]
    table = np.zeros((lengths.max(), len(rows)), np.int64)
    for i, row in enumerate(rows.tolist()):
        table[: lengths[i], i] = ids[offsets[row] : offsets[row + 1]]
    return torch.from_numpy(table), torch.from_numpy(lengths)


def measure_steps(captions: Captions, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per step and microseconds per token of the three ways to read captions."""
    words, _ = vocabulary(captions.texts, 1)
    ids, offsets = encode(captions.texts, {word: i for i, word in enumerate(words)}, 100)
    torch.manual_seed(0)
    tower = SequenceTower(len(words), args.word_dim, args.dim)
    optimizer = torch.optim.Adam(tower.parameters(), lr=2e-4, fused=True)
    images = Vectors(captions.images, np.ones((len(captions.images), 1), np.float32))
    data = Examples(images, captions, {}, "error", lambda texts: Words(ids, offsets))
    rng = np.random.default_rng(0)
    target = into_space(torch.randn(args.batch, args.dim), False)

    def drawn(bucketed: bool) -> list[np.ndarray]:
        plan = data.plan(0, seed=0, batch=args.batch, bucketed=bucketed, distinct_images=False)
        return [plan[i] for i in rng.permutation(len(plan))[: args.batches]]

    ways = {
        "padded": (padded_rows, drawn(False)),
        "packed": (packed_rows, drawn(False)),
        "bucketed": (our_rows, drawn(True)),
    }
    check_rows({way: read for way, (read, _) in ways.items()}, tower, ids, offsets, ways["padded"][1][0])

    def step(read: Any, rows: np.ndarray) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
            found = read(tower, ids, offsets, rows)
        ranking_loss(target[: len(rows)], into_space(found, False), similarity="dot").backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 2.0)
        optimizer.step()

    return time_rounds(step, ways, np.diff(offsets), args.repeats)


def check_rows(
    ways: dict[str, Any], tower: SequenceTower, ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray
) -> None:
    """AssertionError unless all ways give the same rows."""
    with torch.no_grad():
        expected = padded_rows(tower, ids, offsets, rows)
        for way, read in ways.items():
            if not torch.allclose(read(tower, ids, offsets, rows), expected, rtol=1e-4, atol=1e-5):
                raise AssertionError(f"{way}: expected the rows of the padded batch")


def time_rounds(
    step: Callable[[Any, np.ndarray], None],
    ways: dict[str, tuple[Any, list[np.ndarray]]],
    lengths: np.ndarray,
    repeats: int,
) -> dict[str, Any]:
    """Times the batches of each way in turn; medians over the rounds."""
    per_token: dict[str, list[float]] = {way: [] for way in ways}
    per_step: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, (read, batches) in ways.items():
            started = time.process_time()
            for rows in batches:
                step(read, rows)
            seconds = time.process_time() - started
            if repeat:  # the first round warms up
                per_step[way].append(seconds / len(batches))
                per_token[way].append(seconds / sum(int(lengths[rows].sum()) for rows in batches))
    return {
        way: {
            "step_ms": 1e3 * statistics.median(per_step[way]),
            "us_per_token": 1e6 * statistics.median(per_token[way]),
            "padded_over_this": statistics.median(
                a / b for a, b in zip(per_token["padded"], per_token[way], strict=True)
            ),
        }
        for way in ways
    }


# ---- epochs and retrieval -----------------------------------------------------------------------------------------


def train(captions: Captions, images: Vectors, args: argparse.Namespace, seed: int, **settings: Any) -> dict[str, Any]:
    options = {
        "dim": args.dim,
        "word_dim": args.word_dim,
        "batch": args.batch,
        "precision": args.precision,
        "lr": args.lr,
        "dropout": args.dropout,
        "epochs": args.epochs,
        "lr_drop": max(1, args.epochs - args.epochs // 4) if args.epochs > 1 else None,
    }
    model = Multimodal(**{**options, **settings}, seed=seed)
    started = time.process_time()
    model.fit(images, captions, progress=None if args.progress else False)
    cpu = time.process_time() - started
    found = model.evaluate(images, captions.part("test"))
    return {"cpu_s": cpu, "cpu_s_per_epoch": cpu / len(model.loss_), "losses": model.loss_, "test": found.as_dict()}


def show(runs: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, box=box.SIMPLE)
    for i, name in enumerate(("", "captions R@1/5/10", "median", "images R@1/5/10", "median", "seeds")):
        table.add_column(name, justify="right" if i else "left")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["features"], run["loss"]), []).append(run)
    for (features, loss), group in groups.items():
        cells = []
        for side in ("captions", "images"):
            recalls = [100 * statistics.mean(run["test"][side][name] for run in group) for name in ("r1", "r5", "r10")]
            cells += ["/".join(f"{recall:.1f}" for recall in recalls)]
            cells += [f"{statistics.mean(run['test'][side]['median'] for run in group):g}"]
        table.add_row(f"{features}, {loss}", *cells, str(len(group)))
    name, *sides = LANDMARK
    cells = [cell for *recalls, median in sides for cell in ("/".join(map(str, recalls)), str(median))]
    table.add_row(name, *cells, "")
    Console().print(table)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--epoch", action="store_true")
    parser.add_argument("--retrieval", action="store_true")
    parser.add_argument("--features", type=Path, nargs="+", default=[])
    parser.add_argument("--captions", type=Path, default=DATA / "flickr8k" / "captions.tsv.zst")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--word-dim", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batches", type=int, default=5, help="batches per round of --step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    if (args.epoch or args.retrieval) and not args.features:
        parser.error("--epoch and --retrieval need --features FILE, the image vectors")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parsed(arguments)
    torch.set_num_threads(args.threads)
    captions = Captions.from_file(args.captions, stem=True)
    captions = captions.of_images(
        key for key, split in zip(captions.images, captions.splits, strict=True) if split in ("train", "dev", "test")
    )
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings["features"] = [str(path) for path in args.features]
    settings.pop("json")
    result: dict[str, Any] = {"machine": machine_and_commit(), "torch": torch.__version__, "settings": settings}
    if args.step:
        result["step"] = measure_steps(captions.part("train"), args)
        table = Table(title=f"GRU {args.dim}, batch {args.batch}, {args.precision}", box=box.SIMPLE)
        for name in ("", "ms per step", "us per token", "padded / this, per token"):
            table.add_column(name, justify="right" if name else "left")
        for way, row in result["step"].items():
            table.add_row(way, f"{row['step_ms']:.0f}", f"{row['us_per_token']:.0f}", f"{row['padded_over_this']:.2f}")
        Console().print(table)
    if args.epoch:
        args.epochs, before = 1, args.epochs
        result["epoch"] = {path.name: train(captions, read_features(path), args, 0)["cpu_s"] for path in args.features}
        args.epochs = before
        Console().print(", ".join(f"{name}: {cpu:.0f} CPU s per epoch" for name, cpu in result["epoch"].items()))
    if args.retrieval:
        runs = result["retrieval"] = []
        for path in args.features:
            images = read_features(path)
            for seed, loss in product(range(args.seeds), args.losses):
                runs.append({"features": path.name, "loss": loss, "seed": seed})
                runs[-1] |= train(captions, images, args, seed, **LOSSES[loss])
                if args.json:
                    write_json(args.json, result)
        show(runs, f"Flickr8k, {len(captions.part('test').images)} test images")
    report(result, args.json)


if __name__ == "__main__":
    main()
