"""The benchmarks on tiny inputs: that they run, and that their figures hang together."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import glove as bench_glove
from bench import kernels as bench_kernels
from bench import node2vec as bench_node2vec
from bench import ranking as bench_ranking
from bench import ternary as bench_ternary
from bench import walks as bench_walks
from bench import word2vec as bench_word2vec
from embfast import kernels, reference
from embfast.graphs.walks import Walks

REPORT = "Vocab size: {}\nWords in train file: 100000\n\rAlpha: 0.001  Progress: {}%  Words/thread/sec: 50.00k  "


@pytest.fixture
def text(tmp_path):
    """60 lines of 500 words, w0 to w99."""
    ids = np.random.default_rng(0).integers(0, 100, (60, 500))
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(f"w{i}" for i in line) + "\n" for line in ids.tolist()))
    return path


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Evaluation sets on the words of text."""
    folder = tmp_path / "data" / "eval"
    folder.mkdir(parents=True)
    (folder / "questions-words.txt").write_text(": some\nw0 w1 w2 w3\nw4 w5 w6 w7\n")
    for name in bench_word2vec.SETS.values():
        (folder / name).write_text("w1\tw2\t3.5\nw3\tw4\t1\nw5\tw6\t2\n")
    monkeypatch.setattr(bench_word2vec, "DATA", tmp_path / "data")


def fake_original(words, progress):
    """A program that only prints what word2vec.c prints."""
    printed = REPORT.format(words + 1, progress)
    command = [sys.executable, "-c", f"print({printed!r})"]
    return bench_word2vec.Program(
        bench_word2vec.ORIGINAL, lambda text, output, task: command, bench_word2vec.read_original
    )


def run_word2vec(tmp_path, text, *options):
    path = tmp_path / "results" / "out.json"
    common = ["--text", text, "--words", "20000", "--dims", "16", "--repeats", "1", "--json", path]
    bench_word2vec.main([str(word) for word in (*common, *options)])
    return json.loads(path.read_text())


def test_word2vec_measures_speed_and_quality(tmp_path, text, sets, monkeypatch, capsys):
    monkeypatch.setattr(bench_word2vec, "installed", lambda pythons: [])
    result = run_word2vec(tmp_path, text, "--epochs", "2", "--seeds", "2")
    assert {"cpu", "commit", "date"} <= set(result["machine"])
    assert len(result["rows"]) == 5  # skip-gram and CBOW shared and not; hs
    assert len(result["runs"]["speed"]) == 2 * 5
    assert len(result["runs"]["quality"]) == 2 * 5
    for row in result["rows"]:
        speed = row["words_per_cpu_s"]
        assert 0 < speed["least"] <= speed["median"] <= speed["most"]
        assert set(row["words_per_s"]) == {"1", "2"}
        assert set(row["quality"]) == {"analogy", "WS353", "SimLex", "MEN"}
        assert all(-100 <= score["mean"] <= 100 for score in row["quality"].values())
        assert 10 < row["rss_mb"] < 1000
        assert row["loss"] > 0
        assert row["times_word2vec_c"] is None
        assert (row["vocabulary_mb_per_cpu_s"] is None) == (row["program"] != "embfast")
    assert len(result["runs"]["vocabulary"]) == 1
    assert result["runs"]["vocabulary"][0]["words"] == 100
    mb_per_s = result["rows"][0]["vocabulary_mb_per_cpu_s"]["median"]
    first = result["runs"]["vocabulary"][0]
    assert mb_per_s == pytest.approx(first["bytes"] / 1e6 / first["cpu_s"])
    for run in result["runs"]["speed"]:
        assert (run["words"], run["tokens"]) == (100, 20_000)
        assert 0 < run["training_cpu_s"] <= run["cpu_s"]
        assert run["training_wall_s"] <= run["wall_s"]
    table = capsys.readouterr().out
    assert "embfast pairs" in table
    assert "vocab. MB/CPU s" in table
    assert "MEN" in table


def test_word2vec_takes_the_ratio_to_the_original(tmp_path, text, monkeypatch):
    monkeypatch.setattr(bench_word2vec, "installed", lambda pythons: [fake_original(100, "99.00")])
    result = run_word2vec(tmp_path, text, "--speed", "--modes", "skipgram", "--repeats", "2")
    rows = {row["program"]: row for row in result["rows"]}
    # 100,000 words, with those of other lines, at 50,000 a second; 20,000 of them are the vocabulary's
    assert rows["word2vec.c"]["words_per_cpu_s"]["median"] == pytest.approx(10_000)
    assert rows["word2vec.c"]["times_word2vec_c"]["median"] == 1
    ours = rows["embfast"]
    assert ours["times_word2vec_c"]["least"] == pytest.approx(ours["words_per_cpu_s"]["least"] / 10_000)


def test_word2vec_leaves_out_a_rival_that_stopped_early(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(bench_word2vec, "installed", lambda pythons: [fake_original(100, "50.00")])
    result = run_word2vec(tmp_path, text, "--speed", "--modes", "cbow", "--threads", "1")
    assert {row["program"] for row in result["rows"]} == {"embfast", "embfast pairs"}
    assert "no end of training" in capsys.readouterr().err


def test_word2vec_refuses_another_vocabulary(tmp_path, text, monkeypatch):
    monkeypatch.setattr(bench_word2vec, "installed", lambda pythons: [fake_original(99, "99.00")])
    with pytest.raises(RuntimeError, match="vocabularies of different sizes"):
        run_word2vec(tmp_path, text, "--speed", "--modes", "hs", "--threads", "1")


def test_texts_are_shuffled_by_line_and_broken(tmp_path):
    lines = [" ".join(f"l{i}w{j}" for j in range(2500)) + "\n" for i in range(5)]
    plain = bench_word2vec.write_text(tmp_path / "plain", lines, None).read_text()
    assert plain.split() == "".join(lines).split()
    assert [len(line.split()) for line in plain.splitlines()] == 5 * [1000, 1000, 500]
    shuffled = [bench_word2vec.write_text(tmp_path / f"{s}", lines, s).read_text() for s in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert all(sorted(s.splitlines()) == sorted(plain.splitlines()) for s in shuffled)


FAKE_STANFORD = """#!{python}
import os, struct, sys, time
tool, options = os.path.basename(sys.argv[0]), dict(zip(sys.argv[1::2], sys.argv[2::2]))
if tool == "vocab_count":
    sys.stdout.write("".join(f"w{{i}} 5\\n" for i in range({words})))
elif tool == "cooccur":
    sys.stdout.buffer.write(struct.pack("<iid", 1, 1, 1.0) * 7)
elif tool == "shuffle":
    sys.stdout.buffer.write(sys.stdin.buffer.read())
else:
    for epoch in range(int(options["-iter"])):
        end = time.process_time() + 0.3  # far more than a start of Python, which the bench takes off
        while time.process_time() < end:
            pass
        print(f"01/01/26, iter: {{epoch:03d}}, cost: 0.{{epoch}}25", file=sys.stderr)
    with open(options["-save-file"] + ".txt", "w") as file:
        for i in range({words} + 1):
            print(f"w{{i}}", *[(7 * i * i + k * k) % 97 for k in range(int(options["-vector-size"]))], file=file)
"""


@pytest.fixture
def stanford(tmp_path):
    """Programs that only read and write what Stanford's do."""

    def make(words):
        folder = tmp_path / "build"
        folder.mkdir()
        for tool in ("vocab_count", "cooccur", "shuffle", "glove"):
            (folder / tool).write_text(FAKE_STANFORD.format(python=sys.executable, words=words))
            (folder / tool).chmod(0o755)
        return folder

    return make


def run_glove(tmp_path, text, *options):
    path = tmp_path / "results" / "out.json"
    common = ["--text", text, "--words", 20_000, "--speed-words", 10_000, "--dims", 16, "--window", 3, "--json", path]
    bench_glove.main([str(word) for word in (*common, "--memory-gb", 0.1, "--repeats", 1, *options)])
    return json.loads(path.read_text())


def test_glove_measures_counting_training_and_quality(tmp_path, text, sets, stanford, capsys):
    result = run_glove(tmp_path, text, "--epochs", 2, "--seeds", 1, "--stanford", stanford(100))
    assert {(row["program"], row["threads"]) for row in result["counting"]} == {
        ("embfast", 1), ("embfast", 2), ("Stanford", 1)
    }  # fmt: skip
    for row in result["counting"]:
        assert 0 < row["words_per_cpu_s_with_reading"]["median"] <= row["words_per_cpu_s"]["median"]
        assert row["entries"] == (7 if row["program"] == "Stanford" else result["counting"][0]["entries"])
    assert [row["program"] for row in result["training"]] == ["embfast", "embfast full", "Stanford"]
    for row in result["training"]:
        speed = row["entries_per_cpu_s"]
        assert 0 < speed["least"] <= speed["median"] <= speed["most"]
        assert set(row["quality"]) == {"analogy", "WS353", "SimLex", "MEN"}
        assert 10 < row["rss_mb"] < 1000 or row["program"] == "Stanford"
        assert set(row["entries_per_s"]) == (set() if row["program"] == "Stanford" else {"1", "2"})
    assert result["training"][2]["loss"] == pytest.approx(0.125)
    assert 0 < result["training"][0]["loss"] < 1
    assert len(result["runs"]["quality"]) == 3
    assert len(result["runs"]["speed"]) == 2 + 2 + 1
    table = capsys.readouterr().out
    assert "x Stanford" in table
    assert "MEN" in table


def test_glove_without_rivals_says_so(tmp_path, text, capsys):
    result = run_glove(tmp_path, text, "--speed", "--threads", 1)
    assert {row["program"] for row in result["training"]} == {"embfast", "embfast full"}
    said = capsys.readouterr().err
    assert "Stanford is skipped: build https://github.com/stanfordnlp/GloVe" in said
    assert "glove-python is skipped" in said


def test_glove_refuses_another_vocabulary(tmp_path, text, stanford):
    with pytest.raises(RuntimeError, match="vocabulary sizes differ: embfast 100, Stanford 99"):
        run_glove(tmp_path, text, "--speed", "--stanford", stanford(99))


def test_kernels_stay_below_the_roofline(tmp_path, capsys):
    path = tmp_path / "kernels.json"
    small = ["--dims", "32", "--tokens", "30000", "--words", "500", "--repeats", "3", "--seconds", "0.05"]
    bench_kernels.main([*small, "--json", str(path)])
    result = json.loads(path.read_text())
    limits = result["limits"]
    assert limits["L1_bytes_per_s"] > limits["DRAM_bytes_per_s"] > 1e8
    assert {row["kernel"] for row in result["kernels"]} == set(bench_kernels.KERNELS)
    for row in result["kernels"]:
        assert 0 < row["of_peak"] < 1
        assert 0 < row["least"] <= row["words_per_cpu_s"] <= row["most"]
        assert row["flop_per_s"] == pytest.approx(row["flop_per_word"] * row["words_per_cpu_s"])
    assert "GFLOP/s" in capsys.readouterr().out


def test_kernels_are_checked_before_they_are_timed(monkeypatch):
    def wrong(job, arrays, *rest):
        tally = kernels_train(job, arrays, *rest)
        arrays["w_in"][0] *= 1.01
        return tally

    kernels_train = kernels.train_sequences
    bench_kernels.check(bench_kernels.KERNELS["skip-gram"], 16)
    monkeypatch.setattr(kernels, "train_sequences", wrong)
    with pytest.raises(AssertionError, match="w_in"):
        bench_kernels.check(bench_kernels.KERNELS["skip-gram"], 16)


@pytest.mark.parametrize("n", [0, 1000])
def test_read_bandwidth_refuses_odd_sizes(n):
    with pytest.raises(ValueError, match="multiple of 1024"):
        kernels.read_bandwidth(np.zeros(n, np.float32), 0.01)


def test_bench_of_node_vectors(tmp_path, monkeypatch, capsys):
    pytest.importorskip("numba")
    pytest.importorskip("sklearn")
    (tmp_path / "graphs").mkdir()
    edges = [(i, (i * k + k) % 40) for i in range(40) for k in (1, 2, 3)]
    (tmp_path / "graphs" / "small.edges.tsv.zst").write_text("".join(f"{a}\t{b}\n" for a, b in edges))
    (tmp_path / "graphs" / "small.labels.tsv.zst").write_text("".join(f"{i}\t{i % 2}\n" for i in range(40)))
    monkeypatch.setattr(bench_node2vec, "DATA", tmp_path)
    monkeypatch.setattr(bench_node2vec, "SETTINGS", ((0.5, 2.0),))
    monkeypatch.setattr(bench_node2vec, "TRAINED", ((1.0, 1.0),))
    output = tmp_path / "result.json"
    words = f"--graph small --programs embfast --repeats 1 --splits 2 --walks 50 --output {output}"
    bench_node2vec.main(words.split())
    result = json.loads(output.read_text())["result"]
    assert set(result) == {"walk p=0.5 q=2", "walk weighted p=0.5 q=2", "train p=1 q=1"}
    assert all(found["embfast"]["rss_mb"]["median"] > 1 for found in result.values())
    assert result["walk p=0.5 q=2"]["embfast"]["steps_per_s"]["median"] > 0
    assert 0 < result["train p=1 q=1"]["embfast"]["macro"] <= 1
    assert "Macro-F1" in capsys.readouterr().out


def test_multimodal_measures_steps_epochs_and_retrieval(tmp_path, capsys):
    bench_multimodal = pytest.importorskip("bench.multimodal", exc_type=ImportError)
    from embfast.vectors.vectors import Vectors

    rng = np.random.default_rng(0)
    lines = []
    for i in range(30):
        split = ("train", "train", "train", "dev", "test")[i % 5]
        for n in range(3):
            words = " ".join(f"w{i}" for _ in range(rng.integers(1, 9)))
            lines.append(f"image{i}\t{split}\t{n}\t{words}\n")
    (tmp_path / "captions.tsv").write_text("".join(lines))
    rows = rng.normal(size=(30, 6)).astype(np.float32)
    Vectors([f"image{i}.jpg" for i in range(30)], rows).save(tmp_path / "layer.npz")
    small = "--dim 8 --word-dim 6 --batch 9 --batches 2 --repeats 2 --epochs 2 --seeds 2 --losses sum order"
    files = f"--captions {tmp_path}/captions.tsv --features {tmp_path}/layer.npz --json {tmp_path}/o.json"
    bench_multimodal.main(f"--step --epoch --retrieval {small} {files}".split())
    result = json.loads((tmp_path / "o.json").read_text())
    assert set(result["step"]) == {"padded", "packed", "bucketed"}
    assert result["step"]["padded"]["padded_over_this"] == 1
    assert all(row["us_per_token"] > 0 for row in result["step"].values())
    assert result["epoch"]["layer.npz"] > 0
    assert [(run["loss"], run["seed"]) for run in result["retrieval"]] == [
        ("sum", 0),
        ("order", 0),
        ("sum", 1),
        ("order", 1),
    ]
    assert all(run["test"]["images"]["queries"] == 18 for run in result["retrieval"])
    assert "UVS, VGG19" in capsys.readouterr().out


def test_bench_of_ternary_rows(tmp_path, capsys):
    output = tmp_path / "result.json"
    bench_ternary.main(f"--rows 128 --dim 600 --queries 1 5 --repeats 2 --json {output}".split())
    result = json.loads(output.read_text())
    assert {"cpu", "commit", "kernels", "blas_threads"} <= set(result["machine"])
    assert set(result["making"]) == {"pack", "levels", "unpack", "numpy", "read"}
    assert set(result["search"]) == {"1", "5"}
    assert all(row["float32"]["median"] >= row["float32"]["best"] > 0 for row in result["search"].values())
    assert "ratio" in capsys.readouterr().out


def test_walks_beyond_the_caches_and_what_their_reads_explain(tmp_path, capsys):
    output = tmp_path / "result.json"
    bench_walks.main(f"--nodes 3000 --small 500 --per-node 5 --walks 200 --repeats 1 --output {output}".split())
    result = json.loads(output.read_text())["result"]
    assert set(result["settings"]) == {"p=1 q=1", "p=0.25 q=4", "p=4 q=0.25", "p=1 q=0.5"}
    for entry in result["settings"].values():
        assert entry["tries"]["large"] >= 1
        assert entry["ns_of_reads"]["large"] > 0
    assert result["settings"]["p=0.25 q=4"]["memory"]["peak"] > 0
    assert "explained" in capsys.readouterr().out


@pytest.mark.parametrize(("p", "q"), [(1, 1), (0.25, 4), (4, 0.25)])
def test_reads_noted_down_are_those_of_walks(p, q):
    graph = bench_walks.power_law(3000, 5)
    walks = Walks(graph, p=p, q=q)
    reads = bench_walks.Reads(walks, 1000)
    ids, _ = walks.read(0, 0, 1000)
    rows = ids.reshape(1000, 80)
    expected = []  # candidates for a step, from the enumerated probabilities
    for previous, current in rows[::3, 40:42].tolist():
        row = graph.neighbours[graph.offsets[current] : graph.offsets[current + 1]]
        bias = np.array([reference.bias(graph, previous, current, x, p, q) for x in row])
        expected.append((len(row) * max(1, 1 / q) + max(0, 1 / p - max(1, 1 / q))) / bias.sum())
    assert reads.tries == pytest.approx(np.mean(expected), rel=0.05)
    addresses, _, begins, kinds = reads.trace
    seen = {
        kind: np.concatenate([addresses[begins[i] : begins[i + 1]] for i in np.flatnonzero(kinds == kind)])
        for kind in np.unique(kinds)
    }
    assert len(seen[bench_walks.LABELS]) == len(ids)
    visits, noted = (np.bincount(x, minlength=len(graph)) for x in (ids, seen[bench_walks.LABELS]))
    assert np.corrcoef(visits, noted)[0, 1] > 0.9
    if p == q == 1:
        assert len(seen[bench_walks.NEIGHBOURS]) == len(seen[bench_walks.OFFSETS]) == 1000 * 79
        assert bench_walks.MEMBERS not in seen
    else:
        assert len(seen[bench_walks.MEMBERS]) < len(seen[bench_walks.OFFSETS]) < len(seen[bench_walks.NEIGHBOURS])
    assert reads.seconds() >= 0


def test_ranking_measures_time_and_memory(tmp_path, capsys):
    path = tmp_path / "ranking.json"
    common = ["--dim", "16", "--repeats", "1", "--json", str(path)]
    bench_ranking.main(["--sizes", "40", "600", "--no-memory", "--naive-gb", "0.005", *common])
    found = json.loads(path.read_text())
    assert [(r["mode"], r["rows"], r["n"]) for r in found["results"]] == [
        (mode, kind, n) for mode in ("sum", "max", "nce") for kind in ("mixed", "apart") for n in (40, 600)
    ]
    assert all(("naive" in row) == (row["n"] == 40) for row in found["results"])
    if Path("/proc/self/clear_refs").exists():
        bench_ranking.main(["--sizes", "1500", "--modes", "max", "--rows", "mixed", "--similarity", "dot", *common])
        (row,) = json.loads(path.read_text())["results"]
        assert row["tiled"]["extra_bytes"] < 1500 * 1500 * 4 < row["naive"]["extra_bytes"]
    bench_ranking.main(["--sizes", "20", "--similarity", "order", "--no-memory", *common])
    assert min(row["tiled"]["cpu_s"] for row in json.loads(path.read_text())["results"]) > 0


def test_images_measures_speed_packing_and_accuracy(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install embfast[images]")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install embfast[images]")
    from networks import SMALL, photographs, plain

    from bench import images as bench_images
    from embfast.images.backbones import Backbone

    network = torch.nn.Sequential(*plain()[:5], torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), *plain()[7:])
    monkeypatch.setattr(bench_images, "load_backbone", lambda name: Backbone(network, name, SMALL))
    for i, pixels in enumerate(photographs(48, classes=3)):
        path = tmp_path / "tints" / str(i % 3) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(path)
    options = ["--batch", "2", "--repeats", "1", "--dim", "700", "--labelled", tmp_path / "tints", "--seeds", "2"]
    options += ["--per-class", "2", "4", "--tested", "10", "--json", tmp_path / "out.json"]
    bench_images.main([str(option) for option in options])
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["speed"][0]["dim"] == 18
    assert set(result["speed"][0]["ways"]) == {"forward", "embfast", "keeps all"}
    assert min(result["packing"].values()) > 0
    table = result["labelled"]["tints"]["accuracy"]
    assert list(table) == ["2", "4"]
    assert all(len(score["values"]) == 2 and score["mean"] > 0.5 for score in table["4"].values())
    assert result["labelled"]["tints"]["bytes"]["FNE"] == 128
    assert "embfast takes" in capsys.readouterr().out
