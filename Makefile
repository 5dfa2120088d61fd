# make demo: word vectors of the CIA World Factbook.  make test: everything the tests know.
# make bench ARGS="--help": beside word2vec.c, gensim and fastText; the whole of it takes hours.
# Needs python3 with venv, and a C++20 compiler; CMake comes from PyPI.  PYTHON=python3.12 make ... takes another python.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
BUILT_FROM := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*/*)

.PHONY: demo test bench lint clean

demo: .venv/installed
	@mkdir -p build
	$(BIN)/embfast word2vec data/factbook.txt.zst -o build/factbook.bin --epochs 20
	$(BIN)/embfast neighbors build/factbook.bin france gold river wheat -k 6
	$(BIN)/embfast analogy build/factbook.bin france french spain -k 3

test: .venv/test.extra
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

bench: .venv/bench.extra
	$(BIN)/python -m bench.word2vec $(ARGS)

lint: .venv/lint.extra
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*/*.cpp csrc/*/*.cu csrc/*/*.h tests/cuda/*.cpp tests/cuda/*.h

clean:
	rm -rf .venv build dist *.egg-info embfast/*.so embfast/cuda

# Editable: tests and bench use the Python files of the checkout, and the module built beside them.
.venv/installed: $(BUILT_FROM)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -e .
	@touch $@

# What pyproject.toml lists for an extra, without building the package again.
.venv/%.extra: .venv/installed
	$(BIN)/python -c "from importlib.metadata import requires; \
	    print(*(r.split(';')[0] for r in requires('embfast') if r.endswith('extra == \"$*\"')), sep='\n')" > .venv/$*.txt
	$(PIP) install -r .venv/$*.txt
	@touch $@
