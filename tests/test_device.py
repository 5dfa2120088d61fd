"""Training on a device, with a stand-in for CuPy that runs the .cu files on the CPU; and the API of CuPy itself."""

import inspect
import json
import os
import re
import signal
import sys
import warnings

import numpy as np
import pytest
import saved
import standin
from numpy.testing import assert_allclose, assert_array_equal
from problems import job_and_arrays

from embfast import LINE, Corpus, Doc2Vec, Graph, Node2Vec, Word2Vec, kernels, reference
from embfast.device import cuda as device
from embfast.device import sequences
from embfast.errors import TrainingError
from embfast.text.corpus import by_count
from embfast.training import blocks as blocks_module
from embfast.training import sampling
from embfast.training.tables import initial_weights


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", standin)
    if not (device.HOME / "sequences.cu").exists():
        pytest.fail("the device kernels are not beside the module: build the package")
    return standin


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    lines = [[f"w{x}" for x in rng.zipf(1.3, rng.integers(1, 40)) % 60] for _ in range(60)]
    return Corpus.from_sentences(lines, min_count=1)


def device_train(blocks, **arguments):
    return reference.device_train_sequences(*job_and_arrays(arguments), blocks=blocks)


def settings(**changed):
    return {"dim": 12, "window": 3, "epochs": 2, "sample": 0.01, "seed": 4} | changed


# ---- models -------------------------------------------------------------------------------------------------------

WORDS = {
    "sg": {},
    "sg-hs": {"hs": True, "negatives": 0},
    "sg-both": {"hs": True},
    "cbow": {"cbow": True},
    "cbow-sum": {"cbow": True, "cbow_mean": False},
    "full windows": {"shrink_windows": False},
    "wide rows": {"dim": 130},
}


@pytest.mark.parametrize("kind", WORDS)
def test_word_vectors_match_the_reference(kind, cupy, corpus):
    """The tables after a whole fit, which covers all that the host sends, launches and fetches."""
    model = Word2Vec(**settings(device="cuda", **WORDS[kind])).fit(corpus)
    assert model.device_ == "cuda:0 (Stand-in)"
    corpus = by_count(corpus) if model.hs else corpus
    n, dim = len(corpus.words), model.dim
    blocks = blocks_module.make_blocks(corpus.offsets)
    weights = kernels.weight_table(n, dim)
    initial_weights(weights, dim, model.seed)
    tables = {"w_in": weights.astype(np.float64), "w_out": None, "w_nodes": None}
    if model.negatives:
        tables["w_out"] = np.zeros((n, weights.shape[1]))
    if model.hs:
        tables["w_nodes"] = np.zeros((n - 1, weights.shape[1]))
    noise = reference.NoiseTable(sampling.noise_weights(corpus.counts, 0.75)) if model.negatives else None
    lr, min_lr = model._rates()
    losses = []
    for epoch in range(model.epochs):
        loss, examples, _ = device_train(
            **tables,
            ids=corpus.ids,
            offsets=corpus.offsets,
            pieces=blocks_module.make_pieces(corpus.offsets, blocks),
            keep=sampling.keep_thresholds(corpus.counts, model.sample),
            noise=noise,
            tree=reference.HuffmanTree(corpus.counts) if model.hs else None,
            window=model.window,
            shrink=model.shrink_windows,
            cbow=model.cbow,
            mean=model.cbow_mean,
            drawn=model.negatives,
            seed=model.seed,
            epoch=epoch,
            lr_first=lr,
            lr_last=min_lr,
            tokens_before=epoch * corpus.n_tokens,
            tokens_total=model.epochs * corpus.n_tokens,
            blocks=2,
        )
        losses.append(loss / examples)
    assert_allclose(model.loss_, losses, rtol=1e-5)
    for name, table in tables.items():
        if table is not None:
            assert_allclose(saved.tensors(model)[name], table[:, :dim], rtol=1e-5, atol=1e-6, err_msg=name)


DOCUMENTS = {
    "dm": {"mode": "dm"},
    "dm-sum": {"mode": "dm", "dm": "sum"},
    "dbow": {"mode": "dbow"},
    "dbow-words": {"mode": "dbow", "dbow_words": True},
    "both": {"mode": "both"},
    "hs": {"mode": "dm", "hs": True, "negatives": 0},
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents_learn_as_on_the_cpu(kind, cupy, corpus):
    """Several tags per document, training and inference: losses and vectors are close to those of the CPU."""
    tags = [[f"d{d}", f"group{d % 4}"] for d in range(len(corpus))]
    how = settings(lr=0.05, epochs=4, **DOCUMENTS[kind])
    on_cpu = Doc2Vec(**how, threads=1).fit(corpus, tags=tags)
    on_device = Doc2Vec(**how, device="cuda").fit(corpus, tags=tags)
    assert_allclose(on_device.loss_, on_cpu.loss_, rtol=0.05)
    a, b = on_cpu.vectors_.matrix, on_device.vectors_.matrix
    groups = [i for i, key in enumerate(on_cpu.vectors_.keys) if key.startswith("group")]
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines[groups].min() > 0.7
    documents = [["w1", "w2", "w1"], [], ["w3"] * 20, ["not a known word"]]
    with pytest.warns(UserWarning, match="2 of 4 documents have no known word"):
        rows = on_device.infer(documents)
    assert_array_equal(rows[[1, 3]], 0)
    assert np.abs(rows[[0, 2]]).min(axis=1).all()
    with pytest.warns(UserWarning, match="1 of 3"):
        again = on_device.infer([documents[2], documents[3], documents[0]])
    assert_array_equal(again[[2, 0]], rows[[0, 2]], "a document's vector does not depend on the other documents")


def padded(table):
    """Rows as the kernels and the reference have them, float64, of a table of a file."""
    rows = np.zeros((len(table), kernels.padded(table.shape[1])))
    rows[:, : table.shape[1]] = table
    return rows


@pytest.mark.parametrize("kind", ["dm", "dbow"])
def test_inferred_rows_match_the_reference(kind, cupy, corpus):
    model = Doc2Vec(**settings(device="cuda", **DOCUMENTS[kind])).fit(corpus)
    part = model._layouts()[0]
    tensors = saved.tensors(model)
    tables = {name: tensors.get(f"{part.name}_{name}") for name in ("w_in", "w_out", "w_nodes")}
    tables = {name: None if table is None else padded(table) for name, table in tables.items()}
    expected = np.zeros((len(corpus), 16))
    lr, min_lr = model._rates(part)
    arguments = dict(
        w_docs=expected,
        dim=12,
        **tables,
        ids=corpus.ids,
        offsets=corpus.offsets,
        keep=sampling.keep_thresholds(model.counts_, model.sample),
        noise=reference.NoiseTable(sampling.noise_weights(model.counts_, 0.75)),
        cbow=part.cbow,
        tag_weight=part.tag_weight,
        seed=part.seed,
        window=model.window if part.words else 1,
        shrink=part.words,
        mean=True,
        drawn=5,
        lr_first=lr,
        lr_last=min_lr,
    )
    reference.device_infer_documents(*job_and_arrays(arguments), epochs=4, averaged=2)
    assert_allclose(model.infer(corpus, epochs=4), expected[:, :12], rtol=1e-5, atol=1e-6)


def test_nodes_learn_as_on_the_cpu(cupy, monkeypatch):
    rng = np.random.default_rng(1)
    edges = [(a, b) for a in range(16) for b in range(a) if rng.random() < (0.5 if a % 2 == b % 2 else 0.02)]
    graph = Graph.from_edges(*np.array(edges).T)
    monkeypatch.setattr("embfast.graphs.node2vec.BUFFER", 400)
    how = {"dim": 8, "walk_length": 12, "walks_per_node": 4, "window": 3, "epochs": 2}
    on_cpu, on_device = Node2Vec(**how, threads=1).fit(graph), Node2Vec(**how, device="cuda").fit(graph)
    assert on_device.words_ == on_cpu.words_
    assert_allclose(on_device.loss_, on_cpu.loss_, rtol=0.05)


@pytest.mark.parametrize("order", ["1", "2", "both"])
def test_edges_learn_as_on_the_cpu(order, cupy, monkeypatch):
    """Buffers, and chunks of a buffer, bring their own tags: the sources of the edges."""
    rng = np.random.default_rng(2)
    edges = [(a, b) for a in range(40) for b in range(a) if rng.random() < (0.5 if a % 2 == b % 2 else 0.02)]
    graph = Graph.from_edges(*np.array(edges).T)
    monkeypatch.setattr("embfast.graphs.line.BUFFER", 300)
    monkeypatch.setattr(sequences, "CHUNK", 100)
    how = {"order": order, "dim": 8, "epochs": 20}
    on_cpu, on_device = LINE(**how, threads=1).fit(graph), LINE(**how, device="cuda").fit(graph)
    assert on_device.device_ == "cuda:0 (Stand-in)"
    assert_allclose(on_device.loss_, on_cpu.loss_, rtol=0.05)
    assert on_device.loss_[-1] < 0.98 * on_device.loss_[0]
    found = [int(other) for other, _ in on_device.vectors_.most_similar("6", k=9)]
    assert sum(other % 2 == 0 for other in found) >= 7


@pytest.mark.parametrize("shared", [False, True])
def test_tags_of_a_call_match_the_reference(shared, cupy):
    """One table may hold both the tags and the outputs, as in LINE's first order."""
    rng = np.random.default_rng(3)
    n, tokens = 30, 50
    tables = {"w_docs": kernels.weight_table(n, 8), "w_out": kernels.weight_table(n, 8)}
    for table in tables.values():
        table[:, :8] = rng.normal(size=(n, 8))
    slow = {name: table.astype(np.float64) for name, table in tables.items()}
    if shared:
        tables["w_out"], slow["w_out"] = tables["w_docs"], slow["w_docs"]
    each, (ids, tags) = np.arange(tokens + 1), rng.integers(0, n, (2, tokens)).astype(np.int32)
    job = kernels.sequence_job(
        dim=8, window=1, words=False, drawn=3, seed=5, lr_first=0.05, lr_last=0.05, tokens_total=tokens, epoch=2
    )
    session = sequences.Sequences(device.find(), job, tables, noise=kernels.NoiseTable(np.ones(n)))
    tally = session.train(ids, each, np.array([0, tokens]), epoch=2, tokens_before=0, tag_offsets=each, tags=tags)
    session.fetch()
    arrays = {"ids": ids, "offsets": each, "pieces": np.array([0, tokens]), "tag_offsets": each, "tags": tags}
    expected = reference.device_train_sequences(job, {**slow, **arrays, "noise": reference.NoiseTable(np.ones(n))})
    assert_allclose(tally, expected, rtol=1e-5)
    for name, table in tables.items():
        assert_allclose(table, slow[name], rtol=1e-4, atol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="tags: expected at most one per document, 0 <= tag < 30"):
        session.train(ids, each, np.array([0, tokens]), epoch=2, tokens_before=0, tag_offsets=each, tags=tags + n)


# ---- sending the corpus -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [50, 300, 1 << 20])
def test_a_corpus_larger_than_the_lanes_passes_through(chunk, cupy, corpus, monkeypatch):
    """The same examples are drawn, and buffers are reused only after their last use, which the stand-in checks."""
    monkeypatch.setattr(blocks_module, "BLOCK", 64)
    monkeypatch.setattr(sequences, "CHUNK", chunk)
    told = []
    how = settings(device="cuda", epochs=1, lr=0.01)
    model = Word2Vec(**how).fit(corpus, progress=told.append)
    monkeypatch.setattr(sequences, "CHUNK", 1 << 20)
    expected = Word2Vec(**how).fit(corpus)
    assert_allclose(model.loss_, expected.loss_, rtol=1e-3)
    first = kernels.weight_table(len(corpus.words), 12)
    initial_weights(first, 12, 4)
    difference = np.abs(model.vectors_.matrix - expected.vectors_.matrix).max()
    assert difference < 0.2 * np.abs(expected.vectors_.matrix - first[:, :12]).max()
    assert told[-1].done == 1


def test_pieces_refine_blocks():
    rng = np.random.default_rng(0)
    for longest in (30, 3000, 100_000):
        offsets = np.cumsum([0, *rng.integers(0, longest, 200_000 // longest)]).astype(np.int64)
        blocks = blocks_module.make_blocks(offsets)
        pieces = blocks_module.make_pieces(offsets, blocks)
        assert np.isin(blocks, pieces).all()
        assert (np.diff(pieces) > 0).all()
        assert np.diff(pieces).max() <= 1024 + 2 * 256
        if longest == 30:
            assert np.isin(pieces, offsets).all()


def test_mapped_ids_are_sent(cupy, corpus, tmp_path):
    corpus.save(tmp_path / "corpus")
    mapped = Corpus.load(tmp_path / "corpus")
    one = Word2Vec(**settings(device="cuda")).fit(corpus)
    assert_array_equal(Word2Vec(**settings(device="cuda")).fit(mapped).vectors_.matrix, one.vectors_.matrix)


# ---- interrupting and resuming ------------------------------------------------------------------------------------


def test_ctrl_c_writes_a_checkpoint_that_either_device_resumes(cupy, corpus, monkeypatch, tmp_path):
    for module in ("sequences", "blocks"):
        monkeypatch.setattr(f"embfast.training.{module}.BLOCK", 64)
    monkeypatch.setattr("embfast.training.sequences.DEVICE_SLICE", 4)
    monkeypatch.setattr(
        "embfast.training.sequences.make_blocks", lambda offsets: blocks_module.make_blocks(offsets, 64, 16)
    )
    how, path = settings(device="cuda", epochs=3), tmp_path / "state"
    whole = Word2Vec(**how).fit(corpus)

    def press(status):
        if status.done > 0.5:
            os.kill(os.getpid(), signal.SIGINT)

    model = Word2Vec(**how)
    with pytest.raises(KeyboardInterrupt):
        model.fit(corpus, checkpoint=path, progress=press)
    assert 0 < saved.progress_of(path)["epoch"] < 3
    kept = saved.tensors_of(path)
    assert_array_equal(kept["w_out"], saved.tensors(model)["w_out"], "the checkpoint has the device's weights")
    assert kept["w_out"].any()
    resumed = Word2Vec(**how).fit(corpus, checkpoint=path, resume=True)
    assert_allclose(resumed.vectors_.matrix, whole.vectors_.matrix, rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyboardInterrupt):
        Word2Vec(**how).fit(corpus, checkpoint=path, progress=press)
    elsewhere = Word2Vec(**{**how, "device": "cpu", "threads": 1}).fit(corpus, checkpoint=path, resume=True)
    assert_allclose(elsewhere.loss_, whole.loss_, rtol=0.05)


def test_a_loss_that_is_not_finite_stops_the_run(cupy, corpus):
    with pytest.raises(TrainingError, match="the loss became"):
        Word2Vec(**settings(device="cuda", lr=100.0, cbow=True, cbow_mean=False, epochs=20)).fit(corpus)


def test_more_text_and_new_words(cupy, corpus):
    model = Word2Vec(**settings(device="cuda")).fit(corpus)
    more = Corpus.from_sentences([["w1", "new", "w2", "new"]] * 20, min_count=1)
    model.partial_fit(more)
    assert "new" in model.vectors_
    assert len(model.loss_) == 4


# ---- missing software and unsupported settings --------------------------------------------------------------------


def test_without_cupy_the_error_says_what_to_install(monkeypatch, corpus, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r'device="cuda" needs CuPy.*embfast\[cuda13\]'):
        Word2Vec(**settings(device="cuda")).fit(corpus)
    model = Word2Vec(**settings(device="auto", threads=1)).fit(corpus)
    assert model.device_.startswith("cpu, since")
    assert 'device="auto": cpu, since device="cuda" needs CuPy' in capsys.readouterr().err
    assert_array_equal(model.vectors_.matrix, Word2Vec(**settings(threads=1)).fit(corpus).vectors_.matrix)
    Word2Vec(**settings(device="auto", threads=1)).fit(corpus, progress=False)
    assert capsys.readouterr().err == ""


def test_without_a_driver_the_error_says_so(cupy, monkeypatch, corpus):
    def fails():
        raise standin.CUDARuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setattr(standin.runtime, "getDeviceCount", fails)
    with pytest.raises(ValueError, match=r"CuPy 14.0.0 finds no CUDA driver \(cudaErrorInsufficientDriver\)"):
        Word2Vec(**settings(device="cuda")).fit(corpus)


def test_a_device_that_is_missing_or_too_old(cupy, monkeypatch, corpus):
    with pytest.raises(ValueError, match="CUDA device 3 does not exist: the driver lists 1"):
        Word2Vec(**settings(device="cuda:3")).fit(corpus)
    monkeypatch.setitem(standin.PROPERTIES, "major", 6)
    with pytest.raises(ValueError, match=r"compute capability 6.0; kernels are compiled for 7.5 and newer"):
        Word2Vec(**settings(device="cuda")).fit(corpus)
    assert kernels.device("auto")[0] is None


def test_the_error_for_tables_that_do_not_fit_has_their_sizes(cupy, monkeypatch, corpus):
    monkeypatch.setattr(standin, "FREE", [1_000_000])
    n = len(corpus.words)
    with pytest.raises(
        MemoryError, match=rf"0.001 GB free, and training needs .* w_in {n} x 112 x 4 B = .*; w_out {n} x"
    ):
        Word2Vec(**settings(device="cuda", dim=100)).fit(corpus)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Word2Vec(device="gpu"), 'device must be "cpu", "cuda"'),
        (Word2Vec(device=1), 'device must be "cpu", "cuda"'),
        (
            Word2Vec(device="cuda", negatives_shared=False),
            "negatives_shared=False with skip-gram runs on the CPU only",
        ),
        (Word2Vec(device="cuda", dim=1040), r"dim=1,040 \(above 1,024\) runs on the CPU only"),
        (Doc2Vec(device="cuda", dm="concat"), 'dm="concat" runs on the CPU only'),
    ],
    ids=str,
)
def test_settings_that_no_device_supports(model, message, cupy, corpus):
    with pytest.raises(ValueError, match=message):
        model.fit(corpus)


def test_auto_chooses_the_cpu_for_settings_that_no_device_supports(cupy, corpus, capsys):
    model = Word2Vec(**settings(device="auto", negatives_shared=False)).fit(corpus)
    assert model.device_ == "cpu, since negatives_shared=False with skip-gram runs on the CPU only"
    assert f'device="auto": {model.device_}' in capsys.readouterr().err
    model = Doc2Vec(**settings(device="auto", dm="concat")).fit(corpus, progress=False)
    assert model.device_ == 'cpu, since dm="concat" runs on the CPU only'


def test_ids_out_of_range_never_reach_the_device(cupy, corpus):
    tables = {"w_in": kernels.weight_table(9, 8), "w_out": kernels.weight_table(9, 8)}
    job = kernels.sequence_job(dim=8, window=2, shrink=True, drawn=2, seed=1, lr_first=0.1, lr_last=0.1, tokens_total=3)
    session = sequences.Sequences(device.find(), job, tables, noise=kernels.NoiseTable(np.ones(9)))
    ends = np.array([0, 3], np.int64)
    for bad in (9, -1):
        with pytest.raises(ValueError, match="ids: expected 0 <= id < 9"):
            session.train(np.array([1, bad, 2], np.int32), ends, ends, epoch=0, tokens_before=0)


# ---- binaries and sources of kernels ------------------------------------------------------------------------------


def test_binaries_are_used_if_the_driver_is_new_enough(cupy, monkeypatch, tmp_path):
    monkeypatch.setattr(device, "HOME", tmp_path)
    monkeypatch.setattr(standin.RawModule, "made", [])
    (tmp_path / "sequences.cu").write_text("the source")
    one = device.find()
    one.kernel("sequences", "keep_tokens")
    (tmp_path / "built.json").write_text(json.dumps({"toolkit": [13, 0], "architectures": [80]}))
    device.find().kernel("sequences", "keep_tokens")
    monkeypatch.setattr(standin.runtime, "driverGetVersion", lambda: 12040)
    device.find().kernel("sequences", "keep_tokens")
    assert standin.RawModule.made == ["the source", str(tmp_path / "sequences.fatbin"), "the source"]
    (tmp_path / "sequences.cu").unlink()
    with pytest.raises(ValueError, match=r"sequences\.cu is missing: reinstall embfast"):
        device.find().kernel("sequences", "keep_tokens")


def test_the_package_has_the_sources_of_the_kernels(cupy):
    source = device.HOME.parents[1] / "csrc"
    if not source.exists():
        pytest.skip("not in a checkout")
    shipped = [*device.HOME.glob("*.cu"), *device.HOME.glob("*/*.h")]
    assert {path.suffix for path in shipped} == {".cu", ".h"}
    for path in shipped:
        room = "*" if path.parent == device.HOME else path.parent.name
        (original,) = source.glob(f"{room}/{path.name}")
        assert path.read_text() == original.read_text(), f"{path.name} has changed: build the package"


# ---- doctor and bench ---------------------------------------------------------------------------------------------


def test_doctor_names_the_device_or_what_is_missing(cupy, monkeypatch, tmp_path):
    monkeypatch.setattr(device, "HOME", tmp_path)
    assert ("device kernels", "missing") in kernels.describe_devices()
    (tmp_path / "sequences.cu").write_text("")
    rows = dict(kernels.describe_devices())
    assert "NVRTC" in rows["device kernels"]
    assert rows["cuda:0 (Stand-in)"] == (
        "compute capability 8.0, 2 multiprocessors, 17.2 of 17.2 GB free; compiles kernels at first use"
    )
    assert (rows["CuPy"], rows["CUDA driver"]) == ("14.0.0", "CUDA 13.0")
    (tmp_path / "built.json").write_text(json.dumps({"toolkit": [13, 0], "architectures": [80, 90]}))
    rows = dict(kernels.describe_devices())
    assert rows["device kernels"] == "compiled by nvcc 13.0 for sm_80, sm_90"
    assert rows["cuda:0 (Stand-in)"].endswith("runs the compiled kernels")
    monkeypatch.setitem(standin.PROPERTIES, "major", 7)
    monkeypatch.setitem(standin.PROPERTIES, "minor", 0)
    assert "compute capability 7.0" in dict(kernels.describe_devices())["CUDA device"]
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install" in dict(kernels.describe_devices())["CUDA device"]


def with_drawn(job, drawn):
    changed = job.copy()
    changed["drawn"] = drawn
    return changed


def test_the_bench_compares_kernels_with_the_reference_and_models_the_device(cupy, monkeypatch):
    bench = pytest.importorskip("bench.device")
    found = device.find()
    bench.check(found, 20, cbow=True)
    with monkeypatch.context() as planted:
        planted.setattr(bench, "NEGATIVES", 4)
        wrong = reference.device_train_sequences
        planted.setattr(reference, "device_train_sequences", lambda job, *a: wrong(with_drawn(job, 5), *a))
        with pytest.raises(AssertionError):
            bench.check(found, 20, cbow=True)
    allowed = bench.roofline(128, processors=100, bandwidth=1e12, hertz=1e9)
    assert_allclose(allowed["memory"], 1e12 / 7168)
    assert_allclose(allowed["issue"], 4e11 / (164 / 4 * 36))
    assert list(bench.roofline(128, 100, 1e12, None)) == ["memory"]
    assert bench.copy_bandwidth(found) > 0


def test_the_bench_says_what_it_needs(monkeypatch):
    bench = pytest.importorskip("bench.device")
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(sys, "argv", ["bench.device"])
    with pytest.raises(SystemExit, match=r"needs a CUDA device: .*pip install"):
        bench.main()


# ---- CuPy itself ----------------------------------------------------------------------------------------------------

USED = {
    "cuda.Device": ["device"],
    "cuda.Stream": ["non_blocking"],
    "cuda.Stream.synchronize": [],
    "cuda.Stream.__enter__": [],
    "cuda.alloc_pinned_memory": ["size"],
    "cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor": ["func", "blockSize", "dynamicSMemSize"],
    "cuda.get_current_stream": [],
    "cuda.runtime.CUDARuntimeError": [],
    "cuda.runtime.driverGetVersion": [],
    "cuda.runtime.getDeviceCount": [],
    "cuda.runtime.getDeviceProperties": ["device"],
    "cuda.runtime.memGetInfo": [],
    "empty": ["shape", "dtype"],
    "ndarray.data": [],
    "ndarray.fill": ["value"],
    "ndarray.flags": [],
    "ndarray.get": ["stream", "out"],
    "ndarray.set": ["arr", "stream"],
    "RawModule": ["code", "path", "options"],
    "RawModule.get_function": ["name"],
    "RawKernel.__call__": ["grid", "block", "args", "shared_mem"],
    "RawKernel.kernel": [],
    "RawKernel.max_dynamic_shared_size_bytes": [],
}


def parameters(function):
    """Names of parameters, from the signature, and for compiled functions from the docstring."""
    found = re.findall(r"\w+\(([^()]*)\)", re.sub(r"=\(\)|\\", "", function.__doc__ or ""))
    names = [name for one in found for name in re.findall(r"(\w+)\s*(?==|,|$)", re.sub(r"=[^,]*", "", one))]
    try:
        return names + list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return names


def test_cupy_has_every_name_and_parameter_that_is_used():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cupy = pytest.importorskip(
            "cupy", reason="CuPy is not installed; pip install cupy-cuda13x works without a driver"
        )
    for name, used in USED.items():
        found = cupy
        for part in name.split("."):
            assert hasattr(found, part), f"cupy.{name}"
            found = getattr(found, part)
        if used:
            missing = set(used) - set(parameters(found))
            assert not missing, f"cupy.{name} has {parameters(found)}"


def test_no_other_names_are_used_and_the_stand_in_has_them():
    source = "".join(path.read_text() for path in sorted((device.HOME.parent / "device").glob("*.py")))
    chains = set(re.findall(r"(?<![\w.])(?:self\.)?_?cupy\.((?:cuda\.)?\w+(?:\.\w+)*)", source)) - {"__version__"}
    assert chains
    assert chains <= set(USED), chains - set(USED)
    for name, used in USED.items():
        found = standin
        for part in name.replace("ndarray", "Array").split("."):
            if part in ("kernel", "max_dynamic_shared_size_bytes", "data", "flags"):
                break  # set on instances only
            found = getattr(found, part)
        else:
            if used and not isinstance(found, type):
                assert set(used) <= set(inspect.signature(found).parameters), name
