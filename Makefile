# Everything sets itself up: the virtual environment is made again only when its inputs change.
VENV := .venv
RUN := $(VENV)/bin
PYTHON ?= python3
# Three processes on two cores, a file of tests in one of them: a third of the time is waiting for Ray, databases and
# browsers. One thread each: more would wait for each other in loops that take the cores.
PYTEST := OMP_NUM_THREADS=1 $(RUN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: search test check bench bench-transfer format priors

search: $(VENV)/installed
	$(RUN)/metasearch launch digits --space quick --trials 24

test: $(VENV)/installed
	$(PYTEST)

check: $(VENV)/installed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(PYTEST) -m "not slow"

bench: $(VENV)/installed
	$(RUN)/python -m tests.bench

# The priors that ship with the package. DATA: a folder of data sets; CIFAR10: a folder of its images by class.
PRIORS := metasearch/transfer/builtin.parquet
MAKE_PRIORS = $(RUN)/metasearch priors make --storage sqlite:///priors.db --to $(PRIORS) --data-root $(DATA)
priors: $(VENV)/installed
	$(MAKE_PRIORS) builtin-digits=digits
	$(MAKE_PRIORS) --max-train 1000 --image-size 16 builtin-usps=usps builtin-mnist=mnist \
	  builtin-notmnist=idx:$(DATA)/notMNIST/raw/t10k-images-idx3-ubyte.gz,$(DATA)/notMNIST/raw/t10k-labels-idx1-ubyte.gz \
	  builtin-kannada=idx:$(DATA)/KannadaMNIST/raw/X_kannada_MNIST_test-idx3-ubyte.gz,$(DATA)/KannadaMNIST/raw/y_kannada_MNIST_test-idx1-ubyte.gz \
	  builtin-devanagari=npz:$(DATA)/CMATERdb/devanagari-numerals/training-images.npz \
	  builtin-signlanguage=folder:$(DATA)/SignLanguageDigits/Dataset builtin-cifar10=folder:$(CIFAR10)
	$(RUN)/metasearch priors export --storage sqlite:///priors.db --to $(PRIORS)

bench-transfer: $(VENV)/installed
	$(RUN)/python -m tests.bench transfer

format: $(VENV)/installed
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

$(VENV)/installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
