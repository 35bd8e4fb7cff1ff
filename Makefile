# `make train` and `make test` also make the environment .venv and install the versions in constraints.txt.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

train: .venv/ready
	$(BIN)/char-lm train $(ARGS)

# Files in the order of their names: those with few tests, which xdist would begin last, have the longest.
test: .venv/ready-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

# The tables and the picture in README.md: two minutes for each run, then equal characters, two runs at a time with a thread
# each; an hour. Finished runs are skipped.
STUDY := $(BIN)/char-lm sweep --mixers mingru minlstm attention gru lstm mamba
S4D := $(BIN)/char-lm sweep --configs configs/s4d.yaml
results: .venv/ready
	$(STUDY) --seeds 1 2 --runs runs/equal_seconds
	$(S4D) --seeds 1 2 --runs runs/equal_seconds
	export OMP_NUM_THREADS=1; $(STUDY) --seeds 1 --runs runs/equal_characters -- --trainer.max_steps 1300 & other=$$!; \
	  $(STUDY) --seeds 2 --runs runs/equal_characters -- --trainer.max_steps 1300 && wait $$other
	export OMP_NUM_THREADS=1; $(S4D) --seeds 1 --runs runs/equal_characters -- --trainer.max_steps 1300 & other=$$!; \
	  $(S4D) --seeds 2 --runs runs/equal_characters -- --trainer.max_steps 1300 && wait $$other
	$(BIN)/char-lm compare runs/equal_seconds --insert README.md
	$(BIN)/char-lm compare runs/equal_characters --insert README.md#characters --png docs/curves.png --timed runs/equal_seconds
	$(BIN)/char-lm document README.md#sample char-lm generate runs/equal_seconds/mingru-seed1 --prompt ROMEO: --seed 5 --chars 320
	$(BIN)/char-lm evaluate data/pretrained --insert README.md#pretrained
	$(BIN)/char-lm evaluate data/pretrained --weights int8 --insert README.md#int8

# docs/recipe.md: what single options are worth at 1,996,800 characters; 25 minutes after `make results`, of which it takes
# the runs of the defaults. Finished runs are skipped.
TRIAL := $(BIN)/char-lm sweep --runs runs/recipe
TUNING := $(BIN)/char-lm sweep --runs runs/recipe_tuning
VARIED := "data.sampling windows" "model.residual_init 1" "optim.muon_beta2 0" "optim.muon_lr 0.03" "optim.weight_decay 0.05 0.2" \
  "optim.muon_polynomials jordan5 polar5 polar3" "optim.schedule cosine" "optim.ema 0.98"
recipe: .venv/ready
	$(TRIAL) --mixers mingru --seeds 3 -- --trainer.max_steps 1300
	for option in $(VARIED); do $(TRIAL) --mixers mingru --vary $$option -- --trainer.max_steps 1300 || exit; done
	$(TRIAL) --configs configs/v0.1.yaml --vary model.mixer mingru attention -- --trainer.max_steps 1300
	$(TRIAL) --mixers mingru --vary data.batch_size 6 -- --trainer.max_steps 2600 --optim.muon_lr 0.015
	$(BIN)/char-lm compare runs/equal_characters runs/recipe --insert docs/recipe.md
	$(TUNING) --mixers mingru --seeds 1 2 3 --vary model.residual_init 0 1 -- --trainer.max_steps 1300 --data.tuning true
	$(TUNING) --mixers attention --seeds 1 2 --vary model.residual_init 0 1 -- --trainer.max_steps 1300 --data.tuning true
	$(BIN)/char-lm compare runs/recipe_tuning --insert docs/recipe.md#tuning

# docs/reproduction.md: the paper's experiments, scaled for two cores; finished runs are skipped.
LM := $(addprefix configs/paper_cpu/,mingru.yaml minlstm.yaml mamba.yaml transformer.yaml transformer_learned.yaml)
COPYING := configs/paper_cpu/copying_
CONTEXTS := 64 256 1024 4096 16384
paper: .venv/ready
	$(BIN)/char-lm sweep --configs $(LM) --seeds 1 2 3 --runs runs/paper_lm
	$(BIN)/char-lm sweep --configs $(COPYING)mingru.yaml $(COPYING)minlstm.yaml --vary model.layers 3 2 1 --runs runs/paper_copying
	$(BIN)/char-lm sweep --configs $(COPYING)mamba.yaml $(COPYING)s4d.yaml --vary model.layers 3 --runs runs/paper_copying
	$(BIN)/char-lm sweep --mixers mingru minlstm mamba attention --runs runs/extrapolation -- \
	  --data.context 256 --data.batch_size 8 --trainer.max_steps 1000 --eval.every 500 \
	  --data.sampling windows --model.residual_init 1 --optim.muon_beta2 0 --optim.muon_polynomials jordan5 \
	  --trainer.precision 32
	$(BIN)/char-lm compare runs/paper_lm --png docs/paper_lm.png --insert docs/reproduction.md#paper_lm
	$(BIN)/char-lm compare runs/paper_copying --insert docs/reproduction.md#paper_copying
	$(BIN)/char-lm evaluate runs/extrapolation/*-seed1 --contexts $(CONTEXTS) --png docs/extrapolation.png \
	  --insert docs/reproduction.md#extrapolation
	$(BIN)/char-lm bench length --batch 64 --lengths 512 4096 --limit 120 --json docs/length_64.json --insert docs/reproduction.md \
	  --mixers mingru minlstm mamba gru lstm gru_reference lstm_reference
	$(BIN)/char-lm reproduction --parts cell language copying --insert docs/reproduction.md

# docs/reproduction.md: the paper's language modelling at its own size. Finished runs are skipped, interrupted ones resumed.
FULL ?= runs/paper_full
paper-full: .venv/ready
	@echo "four trainings, about 4 hours on two cores that multiply bfloat16, minutes on a GPU; the runs are in $(FULL)"
	$(BIN)/char-lm sweep --configs $(addprefix configs/paper/,mingru.yaml minlstm.yaml mamba.yaml transformer.yaml) --runs $(FULL)
	$(BIN)/char-lm compare $(FULL) --png docs/paper_full.png --x flops --insert docs/reproduction.md#paper_full
	$(BIN)/char-lm evaluate $(FULL)/*-seed1 --insert docs/reproduction.md#paper_full_streaming
	for name in mingru minlstm mamba transformer; do $(BIN)/char-lm bench step --config configs/paper/$$name.yaml \
	  --steps 4 --repeat 3 --json docs/paper_full/$$name.json || exit; done
	$(BIN)/char-lm reproduction --parts full --full $(FULL) --insert docs/reproduction.md

# docs/reproduction.md: selective copying at the paper's length. Finished runs are skipped, interrupted ones resumed.
FULL_COPYING ?= runs/paper_copying_full
paper-copying: .venv/ready
	@echo "four trainings, a quarter of an hour each on one core that multiplies bfloat16; the runs are in $(FULL_COPYING)"
	$(BIN)/char-lm sweep --configs $(addprefix configs/paper/copying_,mingru.yaml minlstm.yaml mamba.yaml s4d.yaml) --runs $(FULL_COPYING)
	$(BIN)/char-lm compare $(FULL_COPYING) --insert docs/reproduction.md#paper_copying_full
	$(BIN)/char-lm evaluate $(FULL_COPYING)/*-seed1 --contexts 80 272 1040 4112 --insert docs/reproduction.md#paper_copying_lengths
	$(BIN)/char-lm reproduction --parts full_copying --full_copying $(FULL_COPYING) --insert docs/reproduction.md

# docs/records.md: an hour; the teachers two at a time with a thread each. Finished runs are skipped.
RECORD := $(BIN)/char-lm sweep --runs runs/record --configs configs/record/
SMALL := runs/record/small-seed
records: .venv/ready
	export OMP_NUM_THREADS=1; $(RECORD)small.yaml --seeds 1 3 & other=$$!; $(RECORD)small.yaml --seeds 2 4 && wait $$other
	$(RECORD)student.yaml -- --distill.teachers $(addprefix $(SMALL),1 2 3 4)
	$(RECORD)quick.yaml -- --distill.teachers $(addprefix $(SMALL),1 2)
	$(BIN)/char-lm compare runs/record --insert docs/records.md#runs
	$(BIN)/char-lm evaluate $(addprefix $(SMALL),1 2 3 4) --ensemble --insert docs/records.md#ensemble
	$(BIN)/char-lm evaluate runs/record/quick-seed1 --insert docs/records.md#quick
	$(BIN)/char-lm evaluate runs/record/student-seed1 --insert docs/records.md#student
	$(BIN)/char-lm evaluate runs/record/student-seed1 --weights int8 --insert docs/records.md#int8
	$(BIN)/char-lm evaluate runs/record/student-seed1 --dynamic 0.02 --insert docs/records.md#dynamic
	$(BIN)/char-lm evaluate runs/record/student-seed1 $(SMALL)1 --text --insert docs/records.md#text
	$(BIN)/char-lm document docs/records.md#sample char-lm generate runs/record/student-seed1 --seed 1 --chars 2000

# docs/performance.md, measured on this machine, which must be idle for an hour. BENCHES="cell train" measures a part.
BENCHES ?= cell busy "page --pages runs/inside.html" step "step --against af1ce59" start train "length --plot docs/length.png --json docs/length.json --limit 3" "numerics --plot docs/numerics.png --json docs/numerics.json" \
  "sample --parts peers batch" "sample --parts length --generated 1000 100000 1000000 --mixers mingru minlstm" "parameters --json docs/parameters.json" overhead
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 CC="gcc -mno-avx512f"
performance: .venv/ready-test
	mkdir -p runs && $(BIN)/char-lm inspect pretrained --html runs/inside.html > /dev/null
	for bench in $(BENCHES); do $(BIN)/char-lm bench $$bench --insert docs/performance.md || exit; done
	$(BIN)/char-lm bench step --model.width 384 --model.options.convolution 0 --data.batch_size 16 --data.context 256 --steps 30 \
	  --insert "docs/performance.md#bench step 384"
	$(AVX2) $(BIN)/char-lm bench step --against af1ce59 --ours "--trainer.precision 32" \
	  --insert "docs/performance.md#bench step against avx2"
	$(BIN)/char-lm bench sample --parts length --generated 1000 10000 100000 --mixers attention \
	  --insert "docs/performance.md#bench sample length attention"
	$(BIN)/char-lm bench corpus --insert docs/scale.md
	$(BIN)/char-lm bench context --insert docs/scale.md
	$(BIN)/char-lm bench split --insert docs/scale.md
	$(BIN)/char-lm bench onnx --insert docs/formats.md

# docs/reliability.md: killed processes, damaged files, precisions, threads, two nodes; an hour. And the killed workers of a
# search in docs/scale.md, which need PostgreSQL.
reliability: .venv/ready-test
	for words in "crash --kills 30" "crash --kills 10 --streams" "crash --kills 0 --calls all" "fuzz --minutes 10" precision threads "elastic --kills 10"; do \
	  $(BIN)/char-lm document docs/reliability.md python -m tests.harness.$$words || exit; done
	$(BIN)/char-lm document docs/scale.md python -m tests.harness.search

# docs/inside.md: what the channels of the pretrained model stand for; the picture of the page needs chromium. A minute.
INSIDE := runs/inside.html
inside: .venv/ready
	mkdir -p runs docs/inside
	$(BIN)/char-lm inspect pretrained --png docs/inside/ --insert docs/inside.md
	$(BIN)/char-lm inspect pretrained --html $(INSIDE) > /dev/null
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,900 --virtual-time-budget=5000 \
	  --screenshot=docs/inspect.png "file://$(CURDIR)/$(INSIDE)#view=channel&channel=3.243&place=60"

# Mistakes put into the code, which the tests must notice: some hours. ARGS="training --share 0.2" does some.
mutants: .venv/ready-test
	$(BIN)/python -m tests.harness.mutants $(ARGS)

# lm/sampling/web/packed.wasm, the native decoder as WebAssembly, after a change of packed.c; needs clang and lld.
wasm: .venv/ready
	$(BIN)/python -m lm.sampling.web.build

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

.PHONY: train test results recipe paper paper-full paper-copying records performance reliability inside mutants wasm lint
