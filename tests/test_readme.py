"""The tour in README.md runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_tour(tmp_path, monkeypatch, capsys):
    if not (ROOT / "README.md").exists():
        pytest.skip("README.md is not beside the tests")
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    tour = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    exec(compile(tour, "README.md", "exec"), {})
    assert "Corpus(261 documents, 914,890 tokens, 7,493 words)" in capsys.readouterr().out
