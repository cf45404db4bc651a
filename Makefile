# madd: `make demo` trains, judges and explains a detector; `make test` proves everything. Both start by making the environment.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo
FACES  ?=
PORT   ?= 8866
ARGS   ?=
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() or 1)")
say     = @printf '\n\033[1m== %s\033[0m\n' "$(1)"

.PHONY: help env demo test notebooks app docs weights checks nbtest pytest wheel clean
help: ## list what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

env: $(VENV)/.ready ## the environment: a venv with pinned versions
$(VENV)/.ready: settings.ini setup.py constraints.txt
	$(call say,Making the environment in $(VENV) (about two minutes the first time: torch is large))
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 10) else 'madd needs Python 3.10 or newer: make PYTHON=python3.11')"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: env ## forge, train, judge and explain a detector (OUT=folder, FACES=folder with one portrait per person, ARGS=more options)
	$(call say,Training$(comma) judging and explaining a detector; the report will be in $(OUT)/report.html)
	@$(BIN)/madd demo "$(OUT)" $(if $(FACES),--faces "$(FACES)") $(ARGS)

test: env checks nbtest pytest wheel ## every check: notebooks, library, wheel
	$(call say,Everything passed)

checks: env
	$(call say,Notebooks are clean$(comma) the library and the README are what the notebooks say)
	@$(BIN)/python tests/check_repo.py

nbtest: env
	$(call say,Every notebook runs from top to bottom (two at a time))
	@OMP_NUM_THREADS=1 TQDM_DISABLE=1 HF_HUB_OFFLINE=1 $(BIN)/nbdev_test --n_workers 2 --timing

pytest: env
	$(call say,What does not belong in a lesson: command line$(comma) interrupted runs$(comma) hostile files)
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q tests -n 2 --dist loadfile

wheel: env
	$(call say,The wheel in a second environment with the newest fastai)
	@rm -rf build dist .venv-user
	@$(BIN)/python -m build -q --wheel --outdir dist . > dist.log 2>&1 || (cat dist.log; exit 1)
	@$(PYTHON) -m venv .venv-user
	@.venv-user/bin/python -m pip install -q --disable-pip-version-check --upgrade pip
	@.venv-user/bin/python -m pip install -q --disable-pip-version-check dist/*.whl 'fastai>=2.8.12'
	@cd dist && HF_HUB_OFFLINE=1 ../.venv-user/bin/python ../tests/smoke.py
	@rm -rf .venv-user build dist.log

notebooks: env ## open the notebooks in JupyterLab
	@cd nbs && ../$(BIN)/jupyter lab

app: env ## the widgets as one page in your browser (PORT=8866)
	$(call say,The explorer opens at http://127.0.0.1:$(PORT) (Ctrl-C ends it))
	@HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(BIN)/voila nbs/explorer.ipynb --Voila.ip=127.0.0.1 --port=$(PORT)

docs: env ## the site, in _site (needs no network; under a minute)
	@$(BIN)/python docs/site/build.py _site

weights: env ## train the weights in the box again, from public-domain portraits, and compare (up to two hours on two cores)
	@$(BIN)/madd portraits
	@$(BIN)/python bench/weights.py --out runs/weights --compare

clean: ## remove everything that was made (environment, demo, builds)
	rm -rf $(VENV) .venv-user build dist dist.log *.egg-info _site $(OUT)

comma := ,
