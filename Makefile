# VAE Lab: every command sets up what it needs, in .venv.
#   make book       render the book from the committed outputs, print its address
#   make test       all tests: units, notebooks, the rendered site in a real browser
#   make lab        open JupyterLab on the chapters
#   make chapters   execute chapters and write their outputs back   [PRESET=book] [CHAPTER=day12] [FRESH=1]
#   make audit      train a sample of the recorded runs again       [CHAPTER=day12] [MINUTES=5]

PYTHON ?= python3
PRESET ?= book
MINUTES ?= 5
BIN := .venv/bin
READY := .venv/.ready
PICK := $(if $(CHAPTER),--chapter $(CHAPTER))

.PHONY: book test lab chapters audit bench lint clean

book: $(READY)
	$(BIN)/jupyter-book build . --all -n -W --keep-going -q
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest
	VAELAB_PRESET=smoke VAELAB_QUIET=1 $(BIN)/python -m pytest --nbval-lax --nbval-current-env \
		--nbval-cell-timeout 120 --timeout 0 book/*.ipynb

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=book

chapters: $(READY)
	$(BIN)/python -m vaelab.book execute --preset $(PRESET) $(PICK) $(if $(FRESH),--fresh)

audit: $(READY)
	$(BIN)/python -m vaelab.book audit --minutes $(MINUTES) $(PICK)

bench: $(READY)
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/balancing.py
	$(BIN)/python benchmarks/expectation.py
	$(BIN)/python benchmarks/posterior.py
	$(BIN)/python benchmarks/order.py

clean:
	rm -rf _build

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "VAE Lab needs Python 3.10 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[book,test]"
	touch $(READY)
