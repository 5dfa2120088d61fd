"""Image embeddings: time and memory compared with the bare forward pass, packing, and accuracy.

OMP_NUM_THREADS=1 python -m bench.images                               EfficientNet-Lite0, float32, batches of 16
OMP_NUM_THREADS=1 python -m bench.images --backbone resnet50 vgg16     untrained; needs torchvision
python -m bench.images --labelled FOLDER --work FOLDER                 accuracy on a folder with one subfolder per class

Speed is the CPU time of one thread, the median of --repeats interleaved runs. All ways must give the same features
before they are timed. The rival extractor keeps all maps and takes the means at the end: torchvision's
create_feature_extractor if torchvision is installed, otherwise hooks that do the same.
"""

import argparse
import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import machine_and_commit, report
from embfast.files.ternary import TernaryMatrix, levels, thresholds
from embfast.images.backbones import load_backbone
from embfast.images.extract import PRECISIONS, Extractor, Run
from embfast.images.pictures import open_pictures
from embfast.images.pooling import Tapped, pooled
from embfast.images.trace import trace
from embfast.images.transfer import Score, classify, few_shot_splits
from embfast.vectors.moments import Moments

PER_CLASS = (5, 10, 20, 60)
ROWS = 2048  # rows of features to pack


# ---- speed and memory ---------------------------------------------------------------------------------------------


def network_of(name: str) -> torch.nn.Module:
    """A network to time. Weights that would be downloaded stay random, as they do not affect the speed."""
    if name == "efficientnet_lite0":
        return load_backbone(name).module
    from torchvision import models

    return models.get_model(name, weights=None)


def keeps_all(network: torch.nn.Module, points: list) -> Callable[[torch.Tensor], torch.Tensor]:
    """An extractor that keeps all maps and takes their means at the end."""
    try:
        from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
    except ImportError:
        create_feature_extractor = None
    if create_feature_extractor is None:
        parts = dict(network.named_modules())

        def run(x: torch.Tensor) -> torch.Tensor:
            kept: dict[tuple[str, int], torch.Tensor] = {}
            calls: dict[str, int] = {}

            def hook(name: str) -> Callable[..., None]:
                def keep(_: Any, args: Any, result: torch.Tensor) -> None:
                    call = calls.get(name, 0)
                    calls[name] = call + 1
                    kept[name, call] = result.clone()  # the next layer may change it in place

                return keep

            handles = [parts[name].register_forward_hook(hook(name)) for name in {p.module for p in points}]
            try:
                network(x)
            finally:
                for handle in handles:
                    handle.remove()
            return torch.cat([pooled(kept[p.module, p.call], p.channels, "mean") for p in points], dim=1)

        return run
    # Nodes are named after the module, with _1, _2, ... for later calls. In-place operations are switched off, because
    # they would change maps that are kept.
    for part in network.modules():
        if getattr(part, "inplace", False):
            part.inplace = False
    _, names = get_graph_node_names(network)
    nodes = {p.name: p.module + (f"_{p.call}" if p.call else "") for p in points}
    assert set(nodes.values()) <= set(names), set(nodes.values()) - set(names)
    extractor = create_feature_extractor(network, {node: node for node in nodes.values()})

    def run_nodes(x: torch.Tensor) -> torch.Tensor:
        kept = extractor(x)
        return torch.cat([pooled(kept[nodes[p.name]], p.channels, "mean") for p in points], dim=1)

    return run_nodes


def peak_mb(run: Callable[[], object]) -> float | None:
    """Peak rise of resident memory during a call, in MB; None without Linux's /proc."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None

    def read(name: str) -> float:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) / 1024

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # otherwise the call reuses memory that an earlier call freed
    clear.write_text("5")
    before = read("VmRSS")
    run()
    return read("VmHWM") - before


def speed(name: str, precision: str, batch: int, repeats: int) -> dict[str, Any]:
    """CPU milliseconds per image and peak MB of the forward pass, of embfast, and of the rival that keeps all maps."""
    network = network_of(name).eval().to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    points = trace(network, x[:1]).select("all")
    rival = keeps_all(network, points)
    autocast = torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "float32")
    with torch.inference_mode(), autocast, Tapped(network, points) as ours:
        here, there = ours(x), rival(x)
        scale = there.abs().mean()
        assert (here - there).abs().max() <= (1e-3 if precision == "float32" else 0.1) * scale
    runs: dict[str, Callable[[], object]] = {}

    def tapped() -> object:
        with Tapped(network, points) as taking:
            return taking(x)

    runs = {"forward": lambda: network(x), "embfast": tapped, "keeps all": lambda: rival(x)}
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    memory: dict[str, float | None] = {}
    with torch.inference_mode(), autocast:
        for way, run in runs.items():
            run()
            memory[way] = peak_mb(run)
        for _ in range(repeats):
            for way, run in runs.items():
                begin = time.process_time()
                run()
                seconds[way].append(time.process_time() - begin)
    found = {}
    for way, taken in seconds.items():
        ms = [1e3 * s / batch for s in taken]
        found[way] = {"ms": statistics.median(ms), "best": min(ms), "worst": max(ms), "peak_mb": memory[way]}
    ratio = statistics.median(o / f for o, f in zip(seconds["embfast"], seconds["forward"], strict=True))
    return {
        "backbone": name,
        "precision": precision,
        "batch": batch,
        "layers": len(points),
        "dim": ours.dim,
        "ways": found,
        "over_forward": ratio,
    }


def packing(dim: int, repeats: int) -> dict[str, float]:
    """Milliseconds to standardise and discretise features: with torch as published, to int8, and to bit planes."""
    rows = np.random.default_rng(0).normal(size=(ROWS, dim)).astype(np.float32)
    moments = Moments(dim)
    moments.add(rows)
    low, high = thresholds(moments.mean, moments.sd)
    tensor = torch.from_numpy(rows)

    def published() -> torch.Tensor:
        standard = (tensor - tensor.mean(0)) / tensor.std(0, unbiased=False)
        return torch.bucketize(standard, torch.tensor([-0.25, 0.15])) - 1

    differ = np.mean(published().numpy() != levels(rows, low, high))
    assert differ < 1e-4, differ  # float32 and float64 round differently at the thresholds
    assert (TernaryMatrix.from_features(rows, low, high)[:] == levels(rows, low, high)).all()
    runs: dict[str, Callable[[], object]] = {
        "torch, int64": published,
        "statistics": lambda: Moments(dim).add(rows),
        "int8": lambda: levels(rows, low, high),
        "bit planes": lambda: TernaryMatrix.from_features(rows, low, high),
    }
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(repeats):
        for way, run in runs.items():
            begin = time.process_time()
            run()
            seconds[way].append(time.process_time() - begin)
    return {way: 1e3 * statistics.median(taken) for way, taken in seconds.items()}


# ---- accuracy -----------------------------------------------------------------------------------------------------


def accuracy(folder: Path, work: Path | None, seeds: int, per_class: tuple[int, ...], tested: int, batch: int) -> dict:
    """Linear SVMs (C = 1) on a few images per class; all statistics come from the training images."""
    pictures = open_pictures(folder)
    labels = np.array([key.split("/")[0] for key in pictures.keys])
    backbone = load_backbone("efficientnet_lite0")
    extractor = Extractor(backbone, pictures, ["all", "penultimate"], run=Run(batch=batch, device="auto"))
    features = extractor.features(pictures, work).matrix
    end = extractor.columns[-1][0]  # the penultimate layer comes last
    every, last = features[:, :end], features[:, end:]
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    table: dict[int, dict[str, Score]] = {}
    for k in per_class:
        if k + 10 > smallest:
            continue
        found: dict[str, list[float]] = {}
        for train, test in few_shot_splits(labels, k, range(seeds), min(tested, smallest - k)):
            fitted = Moments(end)
            fitted.add(every[train])
            low, high = thresholds(fitted.mean, fitted.sd)
            both = labels[train], labels[test]
            for name, rows, scaling in (
                ("last layer, L2", last, "l2"),
                ("last layer, standardised", last, "standard"),
                ("all layers, L2", every, "l2"),
                ("all layers, standardised", every, "standard"),
            ):
                score = classify(rows[train], both[0], rows[test], both[1], scaling=scaling)
                found.setdefault(name, []).append(score)
            score = classify(
                levels(every[train], low, high), both[0], levels(every[test], low, high), both[1], scaling="none"
            )
            found.setdefault("FNE", []).append(score)
        table[k] = {name: Score(tuple(values)) for name, values in found.items()}
    return {
        "pictures": len(pictures),
        "classes": len(set(labels.tolist())),
        "tested_per_class": min(tested, smallest - max(table)),
        "seeds": seeds,
        "bytes": {
            "last layer": 4 * last.shape[1],
            "all layers": 4 * end,
            "FNE": TernaryMatrix.from_features(every[:1], *thresholds(np.zeros(end), np.ones(end))).nbytes,
        },
        "accuracy": {
            k: {n: {"mean": s.mean, "interval": s.interval, "values": s.values} for n, s in row.items()}
            for k, row in table.items()
        },
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbone", nargs="*", default=["efficientnet_lite0"], help="networks to time; pass none to skip"
    )
    parser.add_argument("--precision", nargs="*", default=["float32"], choices=list(PRECISIONS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dim", type=int, default=12_416, help="features per row to pack, by default VGG16's; 0 skips")
    parser.add_argument("--labelled", type=Path, nargs="*", default=[], help="folders with one subfolder per class")
    parser.add_argument("--work", type=Path, help="folder that keeps the features of --labelled")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--per-class", type=int, nargs="*", default=PER_CLASS)
    parser.add_argument("--tested", type=int, default=120, help="test images per class")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    args = parser.parse_args(arguments)

    result: dict[str, Any] = {"speed": [], "machine": machine_and_commit() | {"torch": torch.__version__}}
    result["machine"]["threads"] = torch.get_num_threads()
    for name in args.backbone:
        for precision in args.precision:
            found = speed(name, precision, args.batch, args.repeats)
            result["speed"].append(found)
            print(f"\n{name}, {precision}, batch {args.batch}: {found['layers']} layers, {found['dim']:,} features")
            for way, figures in found["ways"].items():
                peak = "" if figures["peak_mb"] is None else f"  peak {figures['peak_mb']:8.1f} MB"
                spread = f"({figures['best']:.2f} to {figures['worst']:.2f})"
                print(f"  {way:12}{figures['ms']:9.2f} ms per image {spread}{peak}")
            print(f"  embfast takes {found['over_forward']:.3f} x the forward pass")
    if args.dim:
        result["packing"] = packing(args.dim, args.repeats)
        print(
            f"\n{ROWS:,} x {args.dim:,} features: " + ", ".join(f"{k} {v:.0f} ms" for k, v in result["packing"].items())
        )
    result["labelled"] = {}
    for folder in args.labelled:
        work = None if args.work is None else args.work / folder.name
        found = accuracy(folder, work, args.seeds, tuple(args.per_class), args.tested, args.batch)
        result["labelled"][folder.name] = found
        print(f"\n{folder.name}: {found['pictures']:,} images, {found['classes']} classes; bytes {found['bytes']}")
        names = list(next(iter(found["accuracy"].values())))
        print(f"{'per class':>9}" + "".join(f"{name:>26}" for name in names))
        for k, row in found["accuracy"].items():
            cells = (f"{row[name]['mean']:.3f} ± {row[name]['interval']:.3f}" for name in names)
            print(f"{k:>9}" + "".join(f"{cell:>26}" for cell in cells))
    report(result, args.json)


if __name__ == "__main__":
    main()
