"""The embfast program: every command, errors as one line, word2vec.c's flags, Ctrl-C and resume."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from typer.testing import CliRunner

import embfast
from embfast import cli
from embfast.text.corpus import Corpus
from embfast.training import threads
from embfast.vectors.vectors import Vectors
from embfast.words.cooccurrence import CooccurrenceMatrix
from embfast.words.glove import GloVe
from embfast.words.word2vec import Word2Vec

PROGRAM = [sys.executable, "-m", "embfast"]


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], **options)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def fails(*arguments, code=2, **options):
    """stderr of a command that fails with one line and no traceback."""
    result = run(*arguments, code=code, **options)
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [" ".join(f"{'ab'[n % 2]}{i}" for i in random.integers(20, size=12)) for n in range(1_500)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "royal.bin"
    rows = np.array([[1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]], np.float32)
    Vectors(["man", "woman", "king", "queen"], rows).save(path)
    return path


# ---- import and help ----------------------------------------------------------------------------------------------


def modules_after(code):
    code += "; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_is_light():
    heavy = {"rich", "typer", "torch", "scipy", "sklearn", "pandas", "pyarrow", "numba", "cupy", "usearch", "gensim"}
    heavy |= {"matplotlib", "umap"}
    assert not heavy & modules_after("import embfast")
    assert not (heavy | {"safetensors"}) & modules_after("import embfast; embfast.Word2Vec, embfast.Vectors")
    assert not (heavy - {"rich", "typer"}) & modules_after("import embfast.cli")


def test_names_load_at_first_use():
    assert embfast.Word2Vec is Word2Vec
    assert embfast.Corpus is Corpus
    assert embfast.Vectors is Vectors
    assert embfast.evaluate.analogies
    assert embfast.GloVe is GloVe
    assert embfast.CooccurrenceMatrix is CooccurrenceMatrix
    assert {"Corpus", "GloVe", "Phrases", "Vectors", "Word2Vec", "evaluate"} <= set(dir(embfast))
    with pytest.raises(AttributeError, match="no attribute 'Word3Vec'"):
        _ = embfast.Word3Vec


def test_version_and_help():
    assert run("--version").stdout == f"embfast {embfast.__version__}\n"
    for name in ("word2vec", "glove", "neighbors", "analogy", "evaluate", "convert", "phrases", "vocab"):
        assert name in run("--help").stdout
        run(name, "--help")
    assert "embfast[plot]" in run("plot", "--help").stdout
    assert "[weight]" in run("line", "--help").stdout


@pytest.mark.parametrize("model", [Word2Vec, GloVe])
def test_every_setting_is_a_flag_with_its_default_and_words(model):
    command = cli.typer.main.get_command(cli.app).commands[model.__name__.lower()]
    options = {p.name: p for p in command.params}
    for name, setting in model.settings().items():
        assert options[name].default == setting.default, name
        assert f"--{name.replace('_', '-')}" in options[name].opts, name
        assert options[name].help, f"{name} has no entry under Settings in the docstring"


def test_flags_reach_the_model(text, tmp_path):
    given = {
        "dim": 9, "window": 3, "negatives": 7, "hs": True, "cbow": True, "cbow_mean": False, "sample": 0.01,
        "ns_exponent": 0.5, "shrink_windows": False, "epochs": 2, "lr": 0.03, "min_lr": 0.001,
        "negatives_shared": False, "threads": 1, "seed": 5, "device": "auto",
    }  # fmt: skip
    assert given.keys() == Word2Vec.settings().keys()
    flags = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", value]
    path = tmp_path / "vectors.npz"
    shown = json.loads(run("word2vec", text, "-o", path, *flags, "--json").stdout)
    assert shown["settings"] == given
    model = Word2Vec(**given).fit(Corpus.from_file(text))
    assert_array_equal(Vectors.load(path).matrix, model.vectors_.matrix)
    assert shown["loss"] == model.loss_
    assert shown["tokens"] == 18_000


def test_flags_reach_glove(text, tmp_path):
    given = {
        "dim": 9, "window": 3, "symmetric": False, "distance_weighting": False, "epochs": 2, "x_max": 7.0,
        "alpha": 0.5, "lr": 0.03, "vectors": "both", "shuffle": "full", "memory_gb": 0.5, "threads": 1, "seed": 5,
        "device": "cpu",
    }  # fmt: skip
    assert given.keys() == GloVe.settings().keys()
    flags = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        flags += [f"--no-{flag}"] if value is False else [f"--{flag}", value]
    shown = json.loads(run("glove", text, "-o", tmp_path / "vectors.npz", *flags, "--json").stdout)
    assert shown["settings"] == given
    model = GloVe(**given).fit(Corpus.from_file(text))
    assert_array_equal(Vectors.load(tmp_path / "vectors.npz").matrix, model.vectors_.matrix)
    assert (shown["loss"], shown["words"]) == (model.loss_, 40)


# ---- training -----------------------------------------------------------------------------------------------------

SMALL = ["--dim", 8, "--epochs", 1, "--threads", 1]


def test_stdout_stays_clean(text, tmp_path):
    result = run("word2vec", text, "-o", tmp_path / "v.bin", *SMALL)
    assert result.stdout == ""
    assert "18,000 tokens" in result.stderr
    assert "words/s" in result.stderr
    quiet = run("word2vec", text, "-o", tmp_path / "v.bin", *SMALL, "--quiet")
    assert quiet.output == ""


@pytest.mark.parametrize(("name", "format"), [("v.bin", None), ("v.vec", None), ("v.npz", None), ("v", "glove")])
def test_the_format_follows_the_extension_or_the_flag(text, tmp_path, name, format):
    flags = ["--format", format] if format else []
    run("word2vec", text, "-o", tmp_path / name, *SMALL, *flags)
    assert len(Vectors.load(tmp_path / name, format)) == 40


def test_a_model_is_saved_to_go_on_with_and_read_as_vectors(text, tmp_path):
    path = tmp_path / "model.safetensors"
    run("word2vec", text, "--save-model", path, *SMALL)
    model = Word2Vec.load(path)
    model.partial_fit(Corpus.from_file(text))
    assert "a1" in run("neighbors", path, "a2", "-k", 40).stdout
    run("convert", path, tmp_path / "v.txt", "--quiet")
    assert len(Vectors.load(tmp_path / "v.txt")) == 40


def test_corpora_of_all_kinds(text, tmp_path):
    import pyarrow
    import pyarrow.parquet

    Corpus.from_file(text).save(tmp_path / "corpus")
    table = pyarrow.table({"body": text.read_text().splitlines()})
    pyarrow.parquet.write_table(table, tmp_path / "text.parquet")
    outputs = []
    for i, source in enumerate(
        (
            [text],
            [tmp_path / "corpus"],
            [tmp_path / "text.parquet", "--column", "body"],
            [text, "--cache", tmp_path / "c"],
        )
    ):
        run("word2vec", *source, "-o", tmp_path / f"{i}.bin", *SMALL)
        outputs.append((tmp_path / f"{i}.bin").read_bytes())
    assert outputs[1:] == outputs[:1] * 3
    assert (tmp_path / "c" / "corpus.json").exists()


def test_vocabularies_go_out_and_in(text, tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    run("vocab", text, "-o", vocabulary)
    lines = vocabulary.read_text().splitlines()
    assert lines[0] == "</s> 1500"
    assert len(lines) == 41
    run("word2vec", text, "--save-vocab", tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_text() == vocabulary.read_text()
    shown = json.loads(run("word2vec", text, "--save-vocab", tmp_path / "again.txt", "--json", "-q").stdout)
    assert (shown["words"], shown["tokens"], shown["output"]) == (40, 18_000, None)
    vocabulary.write_text("</s> 1500\nb3 900\na1 800\nb4 2\n")
    run("word2vec", text, "-o", tmp_path / "v.bin", "--read-vocab", vocabulary, *SMALL)
    assert Vectors.load(tmp_path / "v.bin").keys == ["b3", "a1"]


def test_errors_are_one_line(text, vectors, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.bin").write_bytes(b"3 2\nabc ")
    out = ["-o", tmp_path / "v.bin"]
    assert "nothing.txt: no such file" in fails("word2vec", tmp_path / "nothing.txt", *out)
    assert re.search(r"no words in .*empty\.txt", fails("word2vec", tmp_path / "empty.txt", *out, "-q"))
    assert "dim must be a whole number from 1 to 100,000, got 0" in fails("word2vec", text, *out, "--dim", 0)
    assert "lower lr" in fails("word2vec", text, *out, "-q", "--lr", 100, "--min-lr", 100, "--cbow", "--no-cbow-mean")
    assert "extension" in fails("word2vec", text, "-o", tmp_path / "v.xyz")
    assert "no directory" in fails("word2vec", text, "-o", tmp_path / "none" / "v.bin")
    assert "nothing to write" in fails("word2vec", text)
    assert "--checkpoint" in fails("word2vec", text, *out, "--resume")
    assert not (tmp_path / "v.bin").exists()
    assert "bad.bin" in fails("neighbors", tmp_path / "bad.bin", "a")
    assert "none.bin: no such file" in fails("neighbors", tmp_path / "none.bin", "a")
    assert "'prince' is not among" in fails("neighbors", vectors, "king", "prince")
    assert "three words" in fails("analogy", vectors, "king", "prince")
    assert "none.txt" in fails("evaluate", vectors, tmp_path / "none.txt")
    assert "empty.txt" in fails("evaluate", vectors, tmp_path / "empty.txt")
    assert "extension" in fails("convert", vectors, tmp_path / "v.xyz")


def test_glove_keeps_a_matrix_and_takes_it_again(text, tmp_path):
    small = ["--dim", 8, "--epochs", 2, "--threads", 1]
    kept, out = tmp_path / "kept.safetensors", tmp_path / "v.txt"
    result = run("glove", text, "-o", out, "--keep-matrix", kept, "--save-model", tmp_path / "m.safetensors", *small)
    assert result.stdout == ""
    assert "entries/s" in result.stderr
    whole = out.read_bytes()
    assert len(Vectors.load(out)) == 40
    run("glove", "--matrix", kept, "-o", out, *small, "-q")
    assert out.read_bytes() == whole
    matrix = CooccurrenceMatrix.load(kept)
    matrix.to_stanford(tmp_path / "cooccurrence.bin", tmp_path / "vocab.txt")
    files = ["--matrix", tmp_path / "cooccurrence.bin", "--read-vocab", tmp_path / "vocab.txt"]
    assert run("glove", *files, "-o", out, *small, "-q").output == ""
    assert out.read_bytes() == whole
    run("convert", tmp_path / "m.safetensors", out, "-q")
    assert out.read_bytes() == whole
    counted = json.loads(run("glove", text, "--keep-matrix", tmp_path / "again", "--window", 3, "--json", "-q").stdout)
    assert counted["entries"] == len(CooccurrenceMatrix.load(tmp_path / "again"))
    run("glove", text, "-o", tmp_path / "v.glove", "--format", "glove", "--read-vocab", tmp_path / "vocab.txt", *small)
    assert Vectors.load(tmp_path / "v.glove", "glove").keys == matrix.words
    out.unlink()
    assert "either text to count or --matrix" in fails("glove", "-o", out)
    assert "either text to count or --matrix" in fails("glove", text, "--matrix", kept, "-o", out)
    assert "nothing to write" in fails("glove", text)
    assert "has been counted already" in fails("glove", "--matrix", kept, "-o", out, "--keep-matrix", kept)
    useless = ["--window", 3, "--min-count", 5, "--errors", "skip", "--column", "text"]
    assert "--window, --min-count, --errors, --column: only for counting text" in fails(
        "glove", "--matrix", kept, "-o", out, *useless
    )
    again = json.loads(run("glove", "--matrix", tmp_path / "again", "-o", out, *small, "--json", "-q").stdout)
    assert again["settings"]["window"] == 3
    again = json.loads(run("glove", *files, "-o", out, *small, "--json", "-q").stdout)
    assert again["settings"]["window"] is None
    assert "memory_gb=1e-05 is too small" in fails("glove", text, "-o", out, "--memory-gb", 1e-5, "-q")
    assert "x_max must be a number" in fails("glove", text, "-o", out, "--x-max", 0)
    assert "another kind of safetensors file" in fails("glove", "--matrix", tmp_path / "m.safetensors", "-o", out, "-q")
    assert "--checkpoint" in fails("glove", text, "-o", out, "--resume")
    flags = ["-o", out, "--checkpoint", tmp_path / "c.safetensors", *small]
    assert "does not exist yet" in run("glove", text, *flags, "--resume").stderr
    assert out.read_bytes() == whole
    assert "alpha was 0.75, is 0.5" in fails("glove", text, *flags, "--resume", "--alpha", 0.5, "-q")


# ---- word2vec.c's flags -------------------------------------------------------------------------------------------


def test_word2vec_c_flags_mean_what_they_meant():
    old = "-train text -output v.bin -size 200 -window 8 -negative 25 -hs 0 -sample 1e-4 -threads 1 -binary 1 -iter 15"
    ours = cli.from_word2vec_c([*old.split(), "-min-count", "3", "-cbow", "1", "-alpha", "0.04", "--seed", "3"])
    assert ours[0] == "text"
    flags = " ".join(ours)
    for flag in (
        "--output v.bin", "--dim 200", "--window 8", "--negatives 25", "--no-hs", "--sample 1e-4", "--threads 1",
        "--format bin", "--epochs 15", "--min-count 3", "--cbow", "--lr 0.04", "--max-sentence 1000", "--seed 3",
    ):  # fmt: skip
        assert f"{flag} " in f"{flags} ", flag
    for known in (["-output", "v.npz"], ["-output", "v.safetensors"], ["-o", "v.bin"], ["--output", "v.npz"]):
        assert "--format" not in cli.from_word2vec_c(["-train", "text", "-size", "9", *known])
    assert "--format text" in " ".join(cli.from_word2vec_c(["-train", "text", "-output", "v.bin"]))
    defaults = cli.from_word2vec_c(["-train", "text", "-output", "v"])
    assert {"--cbow", "--format", "text"} <= set(defaults)
    assert defaults[defaults.index("--threads") + 1] == str(min(12, threads.cores()))
    assert "--no-cbow" in cli.from_word2vec_c(["-train", "text", "-cbow", "0", "-hs", "1"])
    assert "--hs" in cli.from_word2vec_c(["-train", "text", "-cbow", "0", "-hs", "1"])
    assert "--quiet" in cli.from_word2vec_c(["-train", "text", "-debug", "0"])
    assert "--quiet" not in cli.from_word2vec_c(["-train", "text", "-debug", "2"])
    new = ["text", "-o", "v.bin", "--dim", "3"]
    assert cli.from_word2vec_c(new) == new


def test_an_old_script_runs_unchanged(text, tmp_path):
    old = f"-train {text} -output {tmp_path}/v -size 10 -window 3 -sample 0 -negative 5 -hs 0 -threads 1 -iter 2"
    run("word2vec", *old.split(), "-save-vocab", tmp_path / "vocab")
    model = Word2Vec(dim=10, window=3, sample=0.0, cbow=True, threads=1, epochs=2)
    model.fit(Corpus.from_file(text, max_sentence=1000))
    assert_allclose(Vectors.load(tmp_path / "v", "text").matrix, model.vectors_.matrix, rtol=1e-6)
    assert (tmp_path / "vocab").read_text().startswith("</s> 1500\n")
    run("word2vec", *old.split(), "-binary", "1", "-read-vocab", tmp_path / "vocab", "-debug", "0")
    assert_array_equal(Vectors.load(tmp_path / "v", "bin").matrix, model.vectors_.matrix)


def test_classes_part_the_topics(text, tmp_path):
    flags = f"-train {text} -output {tmp_path}/classes -size 10 -cbow 0 -sample 0 -iter 10 -threads 1 -classes 2"
    run("word2vec", *flags.split())
    lines = [line.split(" ") for line in (tmp_path / "classes").read_text().splitlines()]
    assert [word for word, _ in lines] == Corpus.from_file(text).words
    assert len({(word[0], number) for word, number in lines}) == 2
    assert "at most 40 classes" in fails("word2vec", *flags.split(), "-classes", 41, "-debug", 0)
    assert "--classes requires -o" in fails(
        "word2vec", text, "--classes", 2, "--save-model", tmp_path / "m.safetensors"
    )


def test_bad_word2vec_c_flags_are_usage_errors(text):
    assert "expected a value" in run("word2vec", "-train", text, "-output", code=2).stderr
    for flag, value in (("-cbow", "yes"), ("-cbow", "\N{SUPERSCRIPT TWO}"), ("-threads", "--5"), ("-hs", "")):
        assert "whole number" in run("word2vec", "-train", text, "-output", "v", flag, value, code=2).stderr


def test_old_flags_train_on_a_saved_corpus(text, tmp_path):
    Corpus.from_file(text).save(tmp_path / "saved")
    run("word2vec", "-train", tmp_path / "saved", "-output", tmp_path / "v.npz", "-size", 3, "-iter", 1)
    assert Vectors.load(tmp_path / "v.npz").dim == 3


def test_the_original_takes_the_same_command_line(original, text, tmp_path):
    flags = f"-size 10 -window 3 -cbow 0 -negative 5 -min-count 2 -threads 1 -iter 1 -binary 1 -train {text} -output"
    subprocess.run([original("word2vec"), *flags.split(), tmp_path / "theirs.bin"], check=True, capture_output=True)
    run("word2vec", *flags.split(), tmp_path / "ours.bin")
    theirs, ours = Vectors.load(tmp_path / "theirs.bin"), Vectors.load(tmp_path / "ours.bin")
    assert [key for key in theirs.keys if key != "</s>"] == ours.keys
    assert theirs.dim == ours.dim


# ---- Ctrl-C and resume --------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_checkpoint_and_resume_finishes(text, tmp_path):
    checkpoint, out = tmp_path / "run.safetensors", tmp_path / "v.bin"
    arguments = [*PROGRAM, "word2vec", text, "-o", out, "--dim", 100, "--epochs", 200, "--threads", 1, "--sample", 0]
    arguments = [str(a) for a in (*arguments, "--no-negatives-shared", "--checkpoint", checkpoint)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()  # the corpus is read, training begins
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert stderr.strip() == f"interrupted; resume with --checkpoint {checkpoint} --resume"
    assert not out.exists()
    done = Word2Vec.load(checkpoint)._progress
    assert 0 < done.epoch < 200
    result = subprocess.run([*arguments, "--resume", "--json"], capture_output=True, text=True, check=True)
    losses = json.loads(result.stdout)["loss"]
    assert losses[: done.epoch] == done.losses
    assert len(losses) == 200
    assert len(Vectors.load(out)) == 40


def test_resuming_another_run_is_one_line(text, tmp_path):
    flags = ["-o", tmp_path / "v.bin", "--checkpoint", tmp_path / "c.safetensors", *SMALL]
    assert "does not exist yet" in run("word2vec", text, *flags, "--resume").stderr
    assert "window was 5, is 4" in fails("word2vec", text, *flags, "--resume", "--window", 4, "-q")


# ---- questions ----------------------------------------------------------------------------------------------------


def test_neighbors(vectors):
    found = json.loads(run("neighbors", vectors, "king", "man", "-k", 2, "--json").stdout)
    assert list(found) == ["king", "man"]
    assert found["king"][0][0] == "man"
    assert found["king"][0][1] == pytest.approx(0.5)
    assert "man" in run("neighbors", vectors, "king", "-k", 1).stdout
    assert "queen" not in run("neighbors", vectors, "king", "-k", 1).stdout
    assert json.loads(run("neighbors", vectors, "king", "--restrict", 2, "--json").stdout)["king"][1][0] == "woman"


def test_analogy(vectors):
    found = json.loads(run("analogy", vectors, "man", "king", "woman", "--json", "-k", 1).stdout)
    assert found[0][0] == "queen"
    assert "man is to king as woman is to" in run("analogy", vectors, "man", "king", "woman").stdout


def test_questions_line_by_line(vectors):
    result = run("neighbors", vectors, "-k", 1, input="king\n\nprince\nqueen man\n")
    assert "neighbours of king" in result.stdout
    assert "neighbours of man" in result.stdout
    assert "'prince' is not among the 4 keys" in result.stderr
    result = run("analogy", vectors, "-k", 1, input="man king\nman king woman\n")
    assert "expected three words" in result.stderr
    assert "queen" in result.stdout


def test_a_terminal_gets_a_prompt_and_ctrl_d_ends(vectors):
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(PROGRAM[0], [*PROGRAM[1:], "neighbors", str(vectors)], encoding="utf-8", timeout=20)
    child.expect("words .Ctrl-D ends.: ")
    child.sendline("king")
    child.expect("neighbours of king")
    child.expect("words .Ctrl-D ends.: ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_terminal_gets_a_bar(text, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    arguments = [*PROGRAM[1:], "word2vec", str(text), "-o", str(tmp_path / "v.bin"), *map(str, SMALL)]
    child = pexpect.spawn(PROGRAM[0], arguments, encoding="utf-8", timeout=20, dimensions=(24, 160))
    child.expect(r"epoch 1/1.*words/s.*lr.*loss")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_evaluate_tells_the_kinds_apart(vectors, tmp_path):
    questions, pairs = tmp_path / "questions.txt", tmp_path / "pairs.tsv"
    questions.write_text("\n: family\nman woman king queen\nman woman prince princess\n")
    pairs.write_text("# judged\nman woman 1.0\nman king 9.0\nman queen 0.5\nman prince 3\n")
    found = json.loads(run("evaluate", vectors, questions, pairs, "--json").stdout)
    assert found[str(questions)]["kind"] == "analogies"
    assert found[str(questions)]["total"]["correct"] == 1
    assert found[str(questions)]["total"]["skipped"] == 1
    assert found[str(pairs)]["kind"] == "similarity"
    assert (found[str(pairs)]["pairs"], found[str(pairs)]["unknown"]) == (3, 1)
    table = run("evaluate", vectors, questions, pairs).stdout
    assert "100.00 %" in table
    assert "Spearman" in table


def test_convert_between_formats(vectors, tmp_path):
    before = Vectors.load(vectors)
    source = vectors
    for name in ("a.txt", "b.npz", "c.safetensors", "d.vec.gz", "e.bin"):
        run("convert", source, tmp_path / name)
        source = tmp_path / name
    after = Vectors.load(source)
    assert after.keys == before.keys
    assert_array_equal(after.matrix, before.matrix)
    assert source.read_bytes() == vectors.read_bytes()
    run("convert", vectors, tmp_path / "two.txt", "--limit", 2)
    assert len(Vectors.load(tmp_path / "two.txt")) == 2
    (tmp_path / "faulty.txt").write_text("3 2\na 1 2\na 3 4\nb 5 6\n")
    assert "'a' again" in fails("convert", tmp_path / "faulty.txt", tmp_path / "mended.txt")
    assert "1 faults" in run("convert", tmp_path / "faulty.txt", tmp_path / "mended.txt", "--errors", "skip").stderr
    assert Vectors.load(tmp_path / "mended.txt").keys == ["a", "b"]


def test_phrases(tmp_path):
    (tmp_path / "in.txt").write_text("new york is a city\nwe like new york\na city is new\n" * 20)
    out = tmp_path / "out.txt"
    run("phrases", tmp_path / "in.txt", "-o", out, "--threshold", 2)
    assert out.read_text().splitlines()[1] == "we_like new_york"
    shown = json.loads(run("phrases", tmp_path / "in.txt", "-o", out, "--threshold", 2, "--passes", 2, "--json").stdout)
    assert "we_like_new_york" in out.read_text()
    assert shown["phrases"] >= 3
    assert "threshold" in fails("phrases", tmp_path / "in.txt", "-o", out, "--scoring", "npmi", "-q")


def test_doctor_says_what_this_machine_can_run():
    shown = json.loads(run("doctor", "--json").stdout)
    assert shown["embfast"].startswith(embfast.__version__)
    assert "cores" in shown["CPU kernels"]
    assert "device kernels" in shown
    lines = run("doctor").stdout
    for name, text in shown.items():
        if name != "CUDA device":
            assert name in lines
            assert text in lines or "GB free" in text


def test_a_device_that_is_not_there_is_one_red_line(text, tmp_path):
    done = run("word2vec", text, "-o", tmp_path / "vectors.npz", "--device", "cuda:99", code=2)
    assert "embfast doctor" in done.stderr or "CUDA device 99 does not exist" in done.stderr


# ---- files that would be lost -------------------------------------------------------------------------------------


def test_no_file_is_written_over_what_is_read_or_twice(tmp_path):
    text = tmp_path / "c.txt"
    text.write_text("the cat sat on the mat\n" * 50)
    quick = ["--dim", "4", "--epochs", "1", "--threads", "1"]
    assert "would overwrite an input" in fails("word2vec", text, "-o", text, *quick)
    (tmp_path / "link.txt").symlink_to(text)
    assert "would overwrite an input" in fails("word2vec", tmp_path / "link.txt", "-o", text, *quick)
    for option in ("--save-model", "--checkpoint", "--save-vocab"):
        out = tmp_path / "v.bin"
        assert "written twice" in fails("word2vec", text, "-o", out, option, out, *quick)
    for command in ("vocab", "phrases"):
        for source in (text, tmp_path):
            assert "would overwrite an input" in fails(command, source, "-o", text)
    assert "would overwrite an input" in fails("word2vec", tmp_path, "-o", text, *quick)
    assert text.read_text() == "the cat sat on the mat\n" * 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.txt", "link.txt"]


def test_vectors_are_not_written_over_themselves(vectors):
    before = vectors.read_bytes()
    assert "would overwrite an input" in fails("convert", vectors, vectors, "--limit", 3)
    assert "would overwrite an input" in fails("plot", vectors, "-o", vectors)
    assert vectors.read_bytes() == before


@pytest.mark.parametrize("closed", ["2>&-", "<&-"])
def test_a_closed_stream_is_no_fault(text, vectors, tmp_path, closed):
    for arguments in (["vocab", text, "-o", tmp_path / "vocab"], ["neighbors", vectors]):
        command = " ".join(map(str, [*PROGRAM, *arguments]))
        done = subprocess.run(f"{command} {closed}", shell=True, capture_output=True, text=True, input="")
        assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def test_words_with_white_space_are_not_written_to_texts(tmp_path):
    Corpus.from_sentences([["new york", "is", "large"]] * 9).save(tmp_path / "saved")
    assert "cannot hold 'new york'" in fails("phrases", tmp_path / "saved", "-o", tmp_path / "out.txt", "-q")
    flags = ["-o", tmp_path / "out.txt", "--dim", 3, "--epochs", 1, "--classes", 2, "-q"]
    assert "key 'new york' is empty or has white space" in fails("word2vec", tmp_path / "saved", *flags)


def test_what_a_format_cannot_hold_is_said_before_training(tmp_path):
    text = tmp_path / "c.txt"
    text.write_text("the cat \x0c sat on the mat\n" * 50)
    quick = ["--dim", "4", "--epochs", "100000", "--threads", "1", "--quiet"]  # hours of training
    assert "white space" in fails("word2vec", text, "-o", tmp_path / "v.txt", *quick)
    assert "not gzipped" in fails("word2vec", text, "-o", tmp_path / "v.npz.gz", *quick)
    assert "at most 6 classes" in fails("word2vec", text, "-o", tmp_path / "v.txt", "--classes", "7", *quick)
    run("word2vec", text, "-o", tmp_path / "v.bin", "--dim", "4", "--epochs", "1", "--threads", "1")
    assert "\x0c" in Vectors.load(tmp_path / "v.bin")


def test_options_that_a_saved_corpus_or_a_model_cannot_take(tmp_path):
    text = tmp_path / "c.txt"
    text.write_text("the cat sat on the mat\n" * 50)
    saved, model = tmp_path / "saved", tmp_path / "m.safetensors"
    run("word2vec", text, "--save-model", model, "--cache", saved, "--dim", "4", "--epochs", "1", "--threads", "1")
    assert "max_vocab cannot change it" in fails("word2vec", saved, "-o", tmp_path / "v.bin", "--max-vocab", "3")
    useless = ["--min-count", "2000", "--errors", "skip"]
    assert "min_count, errors cannot change it" in fails("word2vec", saved, "-o", tmp_path / "v.bin", *useless)
    assert "errors cannot change it" in fails("phrases", saved, "-o", tmp_path / "out.txt", "--errors", "skip")
    run("phrases", saved, "-o", tmp_path / "out.txt", "--min-count", 2, "-q")
    run("convert", model, tmp_path / "v.txt", "--limit", "3")
    assert len(Vectors.load(tmp_path / "v.txt")) == 3
    assert "errors apply to files of vectors" in fails("convert", model, tmp_path / "v.txt", "--errors", "skip")
    assert "unknown encoding" in fails("convert", tmp_path / "v.txt", tmp_path / "w.npz", "--encoding", "nonsense")
