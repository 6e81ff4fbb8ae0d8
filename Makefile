# make orders the stages; each stage binary decides by content whether there is work.
#
#   make                 everything up to the report        make -n     what would run, and why
#   make train           up to one stage                    make -q     exit 1 if not fresh
#   make status          every node                         make -j2    stages side by side
#   make help            all of it
#
# No file time decides about results: all stages are phony, and a stage with nothing to do
# costs a few milliseconds. docs/reliability.md says how that is made safe.

MAKEFLAGS     += -rR
SHELL         := /bin/bash
.SHELLFLAGS   := -eu -o pipefail -c
.DEFAULT_GOAL := all

# What may be set on the command line.
PROFILE   ?=
SET       ?=
DEVICE    ?=
FORCE     ?=
THREADS   ?=
JOBS      ?=
RANKS     ?=
LAUNCH    ?= mpirun -np $(RANKS) --bind-to none
CONFIG    ?= pipeline.yaml
ARTIFACTS ?= artifacts
CACHE     ?= .cache/npm
PEERS_ENV ?= .cache/peers
PIP_FLAGS ?=
ROWS      ?=
JSON      ?=
CHECK     ?=
PREFIX    ?= /usr/local
DESTDIR   ?=

# The single-letter flags of this make; lazy on purpose, flags are complete in recipes only.
MF   = $(filter-out --%,$(firstword -$(MAKEFLAGS)))
has  = $(findstring $(1),$(MF))
MODE = $(if $(call has,t),$(error make -t is not supported: results are made, not touched))$(if $(call has,q),--check --quiet,$(if $(call has,n),--dry-run,))

# An installed copy of this file begins with the folder of its binaries, and builds nothing.
# Ranks run another program, which needs MPI, in a folder of its own; a plan or a look at the
# results does not wait minutes for its build.
LOOKS := fetch status why dag verify gc clean help
MPI    = $(if $(MODE),,$(and $(RANKS),$(filter-out $(LOOKS),$(or $(MAKECMDGOALS),all)),/mpi))
BIN    = $(or $(INSTALLED),$(or $(CARGO_TARGET_DIR),target)$(MPI)/release)
STAMP  = $(BIN)/.upcycle-built

WHERE = --config '$(CONFIG)' --artifacts '$(ARTIFACTS)' --cache '$(CACHE)' $(if $(PROFILE),--profile '$(PROFILE)') $(if $(SET),--assignments '$(subst ','\'',$(SET))') $(if $(DEVICE),--set 'device=$(DEVICE)')
FLAGS = $(MODE) $(if $(filter $@,$(FORCE)),$(if $(call has,q),,--force)) $(if $(THREADS),--threads $(THREADS)) $(if $(JOBS),--jobs $(JOBS)) $(if $(call has,q),,$(if $(JSON),--json))

# Stages that several processes run together; a plan needs one.
SPREAD   := pretrain activations train evaluate
TOGETHER = $(if $(MODE),,$(if $(filter $@,$(SPREAD)),$(RANKS)))

STAGES := dataset pretrain activations cluster subspaces multiplet upcycle train evaluate analyze report

# The program that starts ranks, looked for before a build of minutes: none for a plan, and none
# where no stage runs.
LAUNCHER = $(if $(MODE),,$(and $(RANKS),$(filter all $(STAGES),$(or $(MAKECMDGOALS),all)),$(firstword $(LAUNCH))))

.PHONY: all build fetch install status why dag verify gc clean help test test-mpi test-python bench-peers bench-scale gpu-check cuda-mutants cuda-sanitize peers $(STAGES)

all: report

# The graph. A test holds it equal to src/stage/plan.rs.
dataset:
pretrain: dataset
activations: dataset pretrain
cluster: activations
subspaces: pretrain activations cluster
multiplet: dataset pretrain
upcycle: pretrain cluster subspaces multiplet
train: dataset upcycle
evaluate: dataset train
analyze: dataset pretrain train
report: dataset pretrain cluster subspaces train evaluate analyze

$(STAGES): | build
$(filter-out dataset,$(STAGES)):
	+@$(if $(TOGETHER),$(LAUNCH)) $(BIN)/upcycle-$@ $(WHERE) $(FLAGS) $(if $(TOGETHER),--ranks $(RANKS))

# What later stages could not do is refused first, unless the data set alone is asked for.
AHEAD = $(if $(filter-out build fetch dataset,$(or $(MAKECMDGOALS),all)),--ahead)

dataset: | fetch
	+@$(BIN)/upcycle-dataset $(WHERE) $(FLAGS) $(AHEAD)

# Scripts are passed by the environment, so that `make -n` shows plans and not scripts.
#
# cargo needs a third of a second to find that there is nothing to do; find needs three
# milliseconds. The stamp carries the time at which the last good build began.
define BUILD
if [ -n '$(LAUNCHER)' ] && ! command -v '$(LAUNCHER)' >/dev/null; then
  echo 'RANKS needs $(LAUNCHER), which is missing: install MPI (Debian: openmpi-bin), name a launcher with LAUNCH, or leave RANKS out' >&2; exit 1
fi
if [ -n '$(INSTALLED)' ]; then exit 0; fi
# Carried binaries, without sources, are as they are.
if [ ! -d src ] && [ -x $(BIN)/upcycle-report ]; then exit 0; fi
sources='src bin python/upcycle_moe/*.py LICENSE build.rs Cargo.toml Cargo.lock pipeline.yaml'
if [ -x $(BIN)/upcycle-report ] && [ -e $(STAMP) ] &&
   [ -z "$$(find $$sources -newer $(STAMP) -print -quit)" ]; then exit 0; fi
command -v cargo >/dev/null || {
  echo 'upcycle is built with Rust: install it from https://rustup.rs' >&2; exit 1; }
if [ -n '$(MPI)' ] && ! command -v mpicc >/dev/null; then
  echo 'RANKS is built with MPI, whose compiler mpicc is missing: install it (Debian: libopenmpi-dev libclang-dev), or leave RANKS out' >&2; exit 1
fi
echo 'building (some minutes the first time)' >&2
mkdir -p $(BIN)
touch $(STAMP).begun
# Cargo has a bar on a terminal; elsewhere a line a minute says that something happens.
quiet=
if [ ! -t 2 ]; then
  quiet=--quiet
  (while sleep 60 >/dev/null 2>&1; do echo "building, $$((SECONDS / 60)) min so far" >&2; done) & beat=$$!
  trap 'kill $$beat 2>/dev/null' EXIT
fi
cargo build --release --locked --bins $(if $(MPI),--features mpi --target-dir $(or $(CARGO_TARGET_DIR),target)/mpi) $$quiet
mv $(STAMP).begun $(STAMP)
endef

# Packages are pinned by version and digest in the packages.lock of src/data/emoji and
# src/data/icons; the data set stage checks the digests.
define FETCH
missing=$$($(BIN)/upcycle-dataset $(WHERE) --missing-packages)
if [ -z "$$missing" ]; then exit 0; fi
if [ -n '$(MODE)' ]; then
  echo "would fetch $$(wc -l <<< "$$missing") packages with npm" >&2; exit 0; fi
command -v npm >/dev/null || {
  echo 'the pictures are fetched with npm, which is missing; without it: make PROFILE=smoke' >&2
  exit 1; }
mkdir -p '$(CACHE)'
while read -r name version file; do
  echo "fetching $$name $$version" >&2
  npm pack "$$name@$$version" --pack-destination '$(CACHE)' --silent >/dev/null || {
    echo "cannot fetch $$name $$version ($$file): is the network there?" >&2; exit 1; }
done <<< "$$missing"
endef

export BUILD FETCH

build:
	+@eval "$$BUILD"

fetch: | build
	+@eval "$$FETCH"

status why dag verify gc: | build
	@$(BIN)/upcycle-inspect $@ $(WHERE)

# Binaries, completions of three shells, man pages, and this file as upcycle-make.
define PLACE
root='$(DESTDIR)$(PREFIX)'
bash="$$root/share/bash-completion/completions"
zsh="$$root/share/zsh/site-functions"
fish="$$root/share/fish/vendor_completions.d"
man="$$root/share/man/man1"
share="$$root/share/upcycle"
install -d "$$root/bin" "$$share" "$$bash" "$$zsh" "$$fish" "$$man"
for program in $(BIN)/upcycle-*; do
  [ -f "$$program" ] && [ -x "$$program" ] || continue
  name=$$(basename "$$program")
  install -m 755 "$$program" "$$root/bin/$$name"
  "$$program" --print-completion bash > "$$bash/$$name"
  "$$program" --print-completion zsh > "$$zsh/_$$name"
  "$$program" --print-completion fish > "$$fish/$$name.fish"
  "$$program" --print-man > "$$man/$$name.1"
done
for pair in evaluate:on cluster:fit subspaces:fit; do
  name=upcycle-$${pair%:*}; inner=$${pair#*:}
  $(BIN)/$$name $$inner --print-man > "$$man/$$name-$$inner.1"
done
{ echo 'INSTALLED := $(abspath $(PREFIX))/bin'; cat Makefile; } > "$$share/Makefile"
printf '%s\n' '#!/bin/sh' '# The pipeline in any folder: the same targets and variables as make.' \
  'exec make -f "$(abspath $(PREFIX))/share/upcycle/Makefile" "$$@"' > "$$root/bin/upcycle-make"
chmod 755 "$$root/bin/upcycle-make"
echo "installed to $$root"
endef

export PLACE

install: | build
	@eval "$$PLACE"

# Removes every result; packages and the build stay.
clean:
	@find '$(ARTIFACTS)' -mindepth 1 -maxdepth 1 ! -name .gitkeep -exec rm -rf {} +

test:
	@command -v cargo >/dev/null || { echo 'upcycle is built with Rust: install it from https://rustup.rs' >&2; exit 1; }
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --release --locked --no-fail-fast; else cargo test --release --locked --no-fail-fast --lib --bins --tests; fi
	@cargo test --release --locked --doc

# Trainings on several processes against one, and what happens when one of them fails.
test-mpi:
	@cargo test --release --locked --features mpi --target-dir $(or $(CARGO_TARGET_DIR),target)/mpi --test mpi

# An environment that was named on the command line is taken as it is.
define PEERS
if [ -z '$(filter file,$(origin PEERS_ENV))' ] ||
   [ $(PEERS_ENV)/.installed -nt benches/peers/requirements.txt ]; then exit 0; fi
command -v python3 >/dev/null || {
  echo 'the peers are Python packages: install Python 3' >&2; exit 1; }
echo 'installing the peers into $(PEERS_ENV) (some gigabytes the first time)' >&2
python3 -m venv $(PEERS_ENV)
$(PEERS_ENV)/bin/python -m pip install --quiet $(PIP_FLAGS) -r benches/peers/requirements.txt
touch $(PEERS_ENV)/.installed
endef

export PEERS

peers:
	+@eval "$$PEERS"

# Ours and PyTorch, faiss and others side by side, written to docs/benchmarks.md.
bench-peers: | build peers
	+@PYTHONDONTWRITEBYTECODE=1 $(PEERS_ENV)/bin/python benches/peers/run.py --binaries $(BIN) \
	  $(if $(THREADS),--threads $(THREADS)) $(if $(ROWS),--rows $(ROWS))

# Import to report at full size, with random weights; written to docs/scale.md.
bench-scale: | build peers
	@$(PEERS_ENV)/bin/python -B benches/scale.py --binaries $(BIN)

# The Python package and exported folders, with the models of a smoke run.
test-python: | build peers
	@$(MAKE) --no-print-directory PROFILE=smoke ARTIFACTS=.cache/smoke SET= FORCE=
	@for test in python/tests/test_*.py; do \
	  echo "$$test"; \
	  UPCYCLE_BIN='$(BIN)' UPCYCLE_ARTIFACTS=.cache/smoke PYTHONPATH=python \
	    $(PEERS_ENV)/bin/python -B -W ignore "$$test"; \
	done

# Agreement with the CPU engine and speed on the card of this machine, PyTorch beside it where
# it is installed; tables go to docs/gpu.md. Carried binaries do, with this file beside them and
# without Rust; the scripts and the document are used where they came along.
PEER  = benches/peers/gpu.py
TABLE = benches/peers/gpu_table.py

gpu-check: | build
	@mkdir -p '$(ARTIFACTS)'
	@$(BIN)/upcycle-gpu-check --out '$(ARTIFACTS)/gpu-check.json' $(CHECK)
	@if [ ! -f $(PEER) ]; then echo 'skipped: $(PEER) is not here' >&2; \
	elif python3 -c 'import torch' 2>/dev/null; then \
	  python3 -B $(PEER) --compile --out '$(ARTIFACTS)/gpu-torch.json' $(CHECK_PEER); \
	else echo 'skipped: PyTorch is not installed' >&2; fi
	@if [ ! -f $(TABLE) ] || [ ! -f docs/gpu.md ]; then \
	  echo 'skipped: $(TABLE) or docs/gpu.md is not here' >&2; \
	elif command -v python3 >/dev/null; then \
	  python3 -B $(TABLE) '$(ARTIFACTS)' docs/gpu.md; \
	else echo 'skipped: tables are written by Python 3' >&2; fi

# The path of the tests of the CUDA engine, as cargo built them.
CUDA_TESTS = cargo test --release --locked --test cuda --no-run --message-format json | \
  sed -n 's|.*"executable":"\([^"]*/cuda-[^"]*\)".*|\1|p'

# Breaks every kernel, one at a time; all must be caught by the emulated tests.
cuda-mutants:
	@tests/cuda/mutants.py "$$($(CUDA_TESTS))"

# The emulated tests under the address and undefined-behavior sanitizers of g++: those in which
# every kernel runs once in each precision. More orders of threads and whole pipelines run the
# same code again, ten times slower.
SANITIZED = attention_ norms_ pairs_ gathered_ levels_become most_uncertain losses_and \
  a_loss_over encoding_ three_steps micro_batches_have

cuda-sanitize:
	@binary=$$($(CUDA_TESTS)); \
	UPCYCLE_REQUIRE_EMULATOR=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	UPCYCLE_EMULATOR_FLAGS='-O1 -g -fsanitize=address,undefined' \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	"$$binary" $(SANITIZED)

help:
	@printf '%s\n' \
	  'Stages, in order:  $(STAGES)' \
	  '' \
	  '  make                        everything up to the report' \
	  '  make STAGE                  everything up to that stage' \
	  '  make PROFILE=smoke          a small pipeline on drawn shapes, under two minutes' \
	  "  make SET='train.balance=0.05 seeds=[1]'   other parameters, without editing" \
	  "  make SET=\"report.title='My study'\"        a value with blanks in quotes" \
	  '  make FORCE=train            make the results of a stage again' \
	  '  make DEVICE=cpu             auto, cpu or cuda:N, as the key device of pipeline.yaml' \
	  '  make THREADS=4 JOBS=2       threads in all, runs at a time' \
  '  make RANKS=4                training, recording and evaluation on 4 processes, through MPI (docs/scale.md)' \
	  '  make -n | -q | -k | -j2     dry run | fresh? | go on after errors | side by side' \
	  '' \
	  '  make status | why           the state of every node | why each one is stale' \
	  '  make dag                    the graph' \
	  '  make verify | gc            rehash every result | list results nothing needs' \
	  '  make fetch                  download the data set' \
	  '  make JSON=1                 events as lines of JSON on standard output' \
	  '  make install PREFIX=DIR     binaries, shell completions and man pages' \
	  '  make clean                  remove every result' \
	  '  make test                   all tests' \
  '  make test-mpi               trainings on several processes, where MPI is installed' \
	  "  make bench-peers            compare with PyTorch, faiss, ..; ROWS='kmeans' for some" \
	  '  make bench-scale            ViT-B from import to report: time and memory' \
	  '  make test-python            the Python package, exports in transformers and ONNX, the notebook' \
	  '  make gpu-check              the CUDA engine on this machine: is it right, how fast' \
	  "  make gpu-check CHECK='--only correctness'    a part of it, and other options" \
  "  make gpu-check CHECK_PEER='--budget 120'     the same for PyTorch's part, here two minutes" \
	  '  make cuda-mutants           breaks its kernels one by one: are the tests awake' \
	  '  make cuda-sanitize          its emulated tests under ASan and UBSan' \
	  '' \
	  'upcycle-inspect --help shows more: show, diff, lineage, accept.'
