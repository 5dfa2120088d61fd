"""README.md, CONTRIBUTING.md and docs: Python blocks run, commands and their options exist, links lead somewhere.

A `python` block runs after the blocks above it on the same page, in a temporary folder that holds small files under the
names that the pages use. A block marked `python no-run` is an excerpt. Commands stand in `sh` blocks.
"""

import ast
import gzip
import inspect
import json
import re
import shlex
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from test_architecture import FLOORS

import embfast
from embfast import Vectors, Word2Vec, cli

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]

if not (ROOT / "README.md").exists():
    pytest.skip("README.md is not beside the tests", allow_module_level=True)


def blocks(name, language):
    """The fenced blocks of a page in one language: line of the first line, words after the language, text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for fence in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if fence[1] == language:
            yield text[: fence.start(3)].count("\n"), fence[2].split(), fence[3]


def python_blocks(name):
    return [(line, code) for line, marks, code in blocks(name, "python") if "no-run" not in marks]


# ---- Python -------------------------------------------------------------------------------------------------------

SUBJECTS = ("a brown dog runs", "two cats sleep", "a girl in a red coat", "children play in the grass")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """A folder with all files that the pages read."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "data").symlink_to(ROOT / "data")
    write_texts(folder)
    write_graph(folder)
    write_images(folder)
    return folder


def write_texts(folder):
    import zstandard

    with open(ROOT / "data" / "factbook.txt.zst", "rb") as stream:
        text = zstandard.ZstdDecompressor().stream_reader(stream).read(1 << 20).decode(errors="ignore")
    lines = text.splitlines()[:-1]
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "questions-words.txt").write_text(": countries\nfrance french spain spanish\n")
    (folder / "wordsim353.tsv").write_text("oil\tgas\t9.0\noil\tking\t1.0\nriver\tlake\t8.0\n")
    (folder / "reviews.tsv").write_text(
        "".join(f"film{i % 7}\tit was {'good' if i % 2 else 'bad'}\n" for i in range(70))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Word2Vec(dim=16, epochs=1).fit(embfast.Corpus.from_file("corpus.txt")).vectors_.save("vectors.bin")


def write_graph(folder):
    """Two groups of nodes, a0 to a29 and b0 to b29, with few edges between them."""
    random = np.random.default_rng(0)
    edges = [f"{kind}{i} {kind}{j}" for kind in "ab" for i in range(30) for j in random.integers(30, size=5) if i != j]
    edges += [f"a{i} b{random.integers(30)}" for i in range(30)]
    (folder / "edges.tsv.gz").write_bytes(gzip.compress("\n".join(edges).encode()))
    (folder / "labels.tsv").write_text("".join(f"{kind}{i}\t{kind}\n" for kind in "ab" for i in range(30)))


def write_images(folder):
    """Pictures in photos, train and test, a subfolder a class; and the files of a data set of captions."""
    from PIL import Image

    random = np.random.default_rng(0)
    for place in ("photos", "train", "test"):
        for kind in ("cats", "dogs"):
            (folder / place / kind).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(256, size=(64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / place / kind / f"{i}.jpg")
    keys = [f"{kind}/{i}.jpg" for kind in ("cats", "dogs") for i in range(4)]
    lines = [f"{key}\t{SUBJECTS[i % 4]} number {i}\n" for i, key in enumerate(keys) for _ in range(2)]
    (folder / "captions.tsv").write_text("".join(lines))
    names = ["1000268201_693b08cb0e", *(f"image{i}" for i in range(11))]
    rows = random.normal(size=(len(names), 32)).astype(np.float32)
    Vectors(names, rows).save(folder / "images.npz")
    images = [
        {"filename": f"{name}.jpg", "split": "test" if i > 8 else "train", "sentences": [{"raw": SUBJECTS[i % 4]}] * 2}
        for i, name in enumerate(names)
    ]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))


@pytest.mark.parametrize("name", [name for name in NAMES if python_blocks(name)])
def test_python_blocks_run(name, small_files, tmp_path, monkeypatch, capsys):
    shutil.copytree(small_files, tmp_path, symlinks=True, dirs_exist_ok=True)  # pages write over some of them
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)  # for the excerpts of tests
    scope = {"__name__": name}
    for line, code in python_blocks(name):
        exec(compile("\n" * line + code, ROOT / name, "exec"), scope)
    if "data/factbook.txt.zst" in (ROOT / name).read_text(encoding="utf-8") and "print(corpus)" in code_of(name):
        assert "Corpus(261 documents, 914,890 tokens, 7,493 words)" in capsys.readouterr().out


def code_of(name):
    return "".join(code for _, code in python_blocks(name))


def test_few_python_blocks_are_excerpts():
    """What cannot run is marked, and there is little of it outside the page of style."""
    marked = [name for name in NAMES for _, marks, _ in blocks(name, "python") if "no-run" in marks]
    assert set(marked) <= {"docs/style.md", "docs/architecture.md", "CONTRIBUTING.md"}, marked


# ---- commands -----------------------------------------------------------------------------------------------------


def commands():
    """Each line of the `sh` blocks, as words."""
    for name in NAMES:
        for line, _, text in blocks(name, "sh"):
            whole = text.replace("\\\n", " ")
            for number, command in enumerate(whole.splitlines(), line + 1):
                if words := shlex.split(command, comments=True):
                    yield pytest.param(words, id=f"{name}:{number}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_of_the_pages_exists(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *rest = words
    if program == "embfast":
        parse(rest)
    elif words[:2] == ["python", "-m"] and rest[1].startswith("bench."):
        source = (ROOT / rest[1].replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        for flag in rest[2:]:
            assert not flag.startswith("--") or f'"{flag}"' in source, flag
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), rest
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        for extra in ",".join(extras).split(","):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE) or not extra
    elif program in ("bash", "pytest", "python", ".venv/bin/python"):
        places = [word for word in rest if "/" in word and "=" not in word]
        assert all((ROOT / place.partition("::")[0]).exists() for place in places), places
    else:
        assert program in ("git", "pre-commit", ".venv/bin/pre-commit"), words


def parse(words):
    """Options and arguments of a command, as the program reads them; nothing is run."""
    command, name = cli.typer.main.get_command(cli.app), "embfast"
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, list(words))


def test_a_wrong_option_is_seen():
    for words, message in (
        (["word2vec", "a.txt", "--dims", "3"], "No such option"),
        (["multimodal", "search"], "Missing"),
        (["glove", "a.txt", "--dim", "many"], "valid integer"),
    ):
        with pytest.raises(cli.typer.BadParameter.__base__, match=message):  # UsageError, of click or of typer
            parse(words)


# ---- tables and links ---------------------------------------------------------------------------------------------


def settings_rows():
    """Rows of the tables of settings: page, class that the heading above names, setting, default as it is printed."""
    for name in NAMES:
        heading, inside = "", False
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            heading = line.lstrip("# ") if line.startswith("#") else heading
            inside = line.startswith("| setting | default") or (inside and line.startswith("|"))
            if inside and line.startswith("| `"):
                setting, default = (cell.strip() for cell in line.split("|")[1:3])
                yield pytest.param(heading, setting.strip("`"), default, id=f"{name}:{heading}.{setting}")


@pytest.mark.parametrize(("model", "setting", "default"), list(settings_rows()))
def test_tables_name_settings_and_their_defaults(model, setting, default):
    assert ast.literal_eval(default) == getattr(embfast, model).settings()[setting].default


def test_the_table_of_common_settings_says_which_model_has_which():
    text = (ROOT / "docs" / "common-settings.md").read_text(encoding="utf-8")
    columns = ("device", "threads", "seed", "checkpoint", "progress")
    rows = re.findall(r"^\| (`[A-Z]\w+`.*?) \| (.*) \|$", text, re.MULTILINE)
    classes = {name: cells.split(" | ") for names, cells in rows for name in re.findall(r"`(\w+)`", names)}
    assert {"Word2Vec", "Doc2Vec", "GloVe", "Node2Vec", "LINE", "Multimodal", "FullNetworkEmbedding"} <= set(classes)
    for name, cells in classes.items():
        model = getattr(embfast, name)
        has = model.settings().keys() | inspect.signature(model.fit).parameters.keys()
        assert [cell.startswith("no") for cell in cells] == [column not in has for column in columns], name


def test_links_lead_somewhere():
    wrong = []
    for name in NAMES:
        text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if re.match(r"https?:", target):
                continue
            path, _, anchor = unquote(target).partition("#")
            page = (ROOT / name).parent / path if path else ROOT / name
            if not page.exists() or (anchor and anchor not in anchors(page)):
                wrong.append(f"{name}: {target}")
    assert not wrong, wrong


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert [name for name in NAMES[1:] if f"({name}" not in text] == []


def test_figures_of_the_readme_are_those_of_the_whole_tables():
    number = r"\d+(?:,\d{3})*(?:\.\d+)?x?"
    whole = set(re.findall(number, (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Speed and quality") : text.index("## What it is not")]
    assert [figure for figure in re.findall(number, table) if figure not in whole] == []


def test_rooms_of_the_architecture_are_those_of_the_package():
    """The table of floors names every room, on the floor that test_architecture.py holds it to."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(len(rows), 0, -1))
    floors = [set(re.findall(r"`(\w+)`", rooms)) for _, rooms in reversed(rows)]
    assert floors == list(FLOORS)
    named = set(re.findall(r"`(\w+)`", text))
    assert {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()} <= named


def test_files_named_in_the_pages_exist():
    wrong = []
    for name in NAMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        for path in re.findall(
            r"`((?:csrc|embfast|bench|tests|training|vectors|words|device|reference)/[\w./]+)`", text
        ):
            if not any((place / path.rstrip("/")).exists() for place in (ROOT, ROOT / "embfast")):
                wrong.append(f"{name}: {path}")
    assert not wrong, wrong
