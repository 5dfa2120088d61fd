"""Words per second of the device kernels, compared with a roofline model of the device. Needs a CUDA device.

python -m bench.device
python -m bench.device --dims 128 300 --tokens 20000000 --json results/device.json

The text is drawn from Zipf's law, with window 5, 5 negatives and no subsampling. Kernels are first checked against the
numpy reference. The model is the smaller of two rates. Memory: rows read and added (7 of each per word) at the measured
bandwidth of a copy. Instruction issue: instructions of the inner loop (INSTRUCTIONS per pair of rows of up to 128
floats; PAIRS per word, from 6 rows in a mean window and 6 outputs) at four per cycle and multiprocessor and the clock
reported by nvidia-smi.
"""

import argparse
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.kernels import Text
from bench.machine import machine_and_commit, report
from embfast import kernels, reference
from embfast.training.blocks import make_blocks, make_pieces
from embfast.training.sampling import noise_weights
from embfast.training.tables import initial_weights

WINDOW, NEGATIVES, SEED = 5, 5, 1
INSTRUCTIONS = 164 / 4  # per pair of rows on sm_90
PAIRS = (WINDOW + 1) * (1 + NEGATIVES)  # per word: the mean window has WINDOW + 1 words


def settings(text: Text, dim: int, cbow: bool, lr: float = 0.025) -> np.ndarray:
    return kernels.sequence_job(
        dim=dim,
        window=WINDOW,
        shrink=True,
        cbow=cbow,
        drawn=NEGATIVES,
        seed=SEED,
        lr_first=lr,
        lr_last=lr,
        tokens_total=len(text.ids),
    )


def session(device: Any, text: Text, dim: int, cbow: bool, lr: float = 0.025) -> tuple[Any, dict[str, np.ndarray]]:
    n = len(text.counts)
    tables = {"w_in": kernels.weight_table(n, dim), "w_out": kernels.weight_table(n, dim)}
    initial_weights(tables["w_in"], dim, SEED)
    job = settings(text, dim, cbow, lr)
    made = kernels.device_sequences(device, job, tables, noise=kernels.NoiseTable(noise_weights(text.counts, 0.75)))
    return made, tables


def check(device: Any, dim: int, cbow: bool) -> None:
    """Raises AssertionError unless one block matches the reference: a fast wrong answer is not a result."""
    text = Text(600, 50)
    made, tables = session(device, text, dim, cbow)
    slow = {name: table.astype(np.float64) for name, table in tables.items()}
    ends = np.array([0, 600], np.int64)
    loss, examples, kept = made.train(text.ids, ends, ends, epoch=0, tokens_before=0)
    made.fetch()
    noise = reference.NoiseTable(noise_weights(text.counts, 0.75))
    job = settings(text, dim, cbow)
    expected = reference.device_train_sequences(
        job, {**slow, "ids": text.ids, "offsets": ends, "pieces": ends, "noise": noise}
    )
    assert (examples, kept) == expected[1:]
    assert abs(loss - expected[0]) < 1e-4 * expected[0]
    for name, table in tables.items():
        np.testing.assert_allclose(table, slow[name], rtol=1e-3, atol=1e-5)


def copy_bandwidth(device: Any) -> float:
    """Bytes per second, read plus written, of a copy on the device."""
    cupy = device.cupy
    with device.current():
        source, target = (cupy.empty(1 << 26, np.float32) for _ in range(2))
        seconds = []
        for _ in range(5):
            cupy.cuda.Device(device.number).synchronize()
            started = time.perf_counter()
            target[:] = source
            cupy.cuda.Device(device.number).synchronize()
            seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def clock(device: Any) -> float | None:
    """Maximum clock of the multiprocessors in Hz; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--id={device.number}", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) * 1e6 if done.returncode == 0 else None


def roofline(dim: int, processors: int, bandwidth: float, hertz: float | None) -> dict[str, float]:
    """Upper bounds on words per second of skip-gram, from memory bandwidth and from instruction issue."""
    rows = 2 * (2 + NEGATIVES) * 4 * kernels.padded(dim)
    allowed = {"memory": bandwidth / rows}
    if hertz is not None:
        warps = -(-kernels.padded(dim) // 128)
        allowed["issue"] = processors * 4 * hertz / (INSTRUCTIONS * PAIRS * warps)
    return allowed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dims", type=int, nargs="+", default=[100, 128, 300])
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        device, name = kernels.device(args.device)
    except (ImportError, ValueError) as error:
        raise SystemExit(f"bench.device needs a CUDA device: {error}") from None
    if device is None:
        raise SystemExit(f"bench.device needs a CUDA device, got {name}")
    text = Text(args.tokens, args.words)
    offsets = np.unique(np.append(np.arange(0, args.tokens, 1000), args.tokens)).astype(np.int64)
    pieces = make_pieces(offsets, make_blocks(offsets))
    bandwidth, hertz = copy_bandwidth(device), clock(device)
    rows = []
    for dim in args.dims:
        for cbow in (False, True):
            check(device, dim, cbow)
            made, _ = session(device, text, dim, cbow)
            rates = []
            for repeat in range(args.repeats + 1):  # the first run is a warm-up
                started = time.perf_counter()
                made.train(text.ids, offsets, pieces, epoch=repeat, tokens_before=0)
                rates.append(args.tokens / (time.perf_counter() - started))
            row = {"model": "CBOW" if cbow else "skip-gram", "dim": dim, "words_per_s": statistics.median(rates[1:])}
            if not cbow:
                row["allowed"] = roofline(dim, device.processors, bandwidth, hertz)
                row["ratio"] = row["words_per_s"] / min(row["allowed"].values())
            rows.append(row)
            ratio = f"  {row['ratio']:.0%} of the model" if "ratio" in row else ""
            print(f"{row['model']:<10} dim {dim:>4}  {row['words_per_s']:>14,.0f} words/s{ratio}", flush=True)
    how = {"device": name, "kernels": device.built(), "copy_bytes_per_s": bandwidth, "clock_hz": hertz}
    report({"bench": "device", **how, "rows": rows, **machine_and_commit()}, args.json)


if __name__ == "__main__":
    main()
