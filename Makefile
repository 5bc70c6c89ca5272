# Everything is done by dev/ in Python; this only gives the commands short names.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

.PHONY: help demo test page parity bench bench-long train-tiny reproduce lint host clean

help:
	@echo "make demo   a video from a picture, as the last line its path:"
	@echo "            IMAGE=… FRAMES=128 SIZE=WxH STEPS=… SEED=… OUT=… PORT=…"
	@echo "make test   lint, types and tests; ARGS=… goes to pytest, HOST=none leaves out ComfyUI"
	@echo "make page   the workflows and the help on ComfyUI's page in Chromium (apt-get install chromium); pictures in out/page"
	@echo "make parity the comparison with the authors' code in full, 25 to 45 minutes on 2 cores and 17 GiB of memory"
	@echo "make bench  memory counted and passes timed, beside the authors' code; about an hour, 17 GiB of memory"
	@echo "make bench-long  long videos of the tiny model beside the right ones: drift and joins; about half an hour"
	@echo "make train-tiny  train the tiny model on little scenes, from nothing; hours on 2 cores, goes on where it stopped"
	@echo "make reproduce  the paper's claim on the tiny model: tables and a picture; about half an hour"
	@echo "make lint   ruff alone"
	@echo "make host   only the environment: .venv and a ComfyUI"
	@echo "make clean  remove all of that, and out/"
	@echo "COMFYUI_PATH=… uses that ComfyUI instead of fetching one; PYTHON=… another Python (3.11 or newer)."

# make hands its variables on in the environment; read there, no file name needs quoting.
export IMAGE FRAMES SIZE STEPS SEED OUT PORT

# Byte code of all that is imported (torch alone: two thousand files) is made once, whatever the machine's habit, and
# nowhere but here: tests look whether the pack and the host are left as they were.
export PYTHONPYCACHEPREFIX = $(CURDIR)/.venv/pycache
unexport PYTHONDONTWRITEBYTECODE

demo:
	@$(PYTHON) -m dev.demo \
		$${IMAGE:+"--image=$$IMAGE"} $${FRAMES:+"--frames=$$FRAMES"} $${SIZE:+"--size=$$SIZE"} \
		$${STEPS:+"--steps=$$STEPS"} $${SEED:+"--seed=$$SEED"} $${OUT:+"--out=$$OUT"} $${PORT:+"--port=$$PORT"}

test:
	@$(PYTHON) -m dev.test $(ARGS)

# A browser that crashed says nothing about the page: that test, and no other, is run again. Two at a time, as most of
# it is waiting; with a thread each, for one that waits for a core spins.
page: host
	@OMP_NUM_THREADS=1 .venv/bin/python -P -m pytest -m page -n 2 --reruns 2 --only-rerun "Target crashed" tests/page $(ARGS)

parity: host
	@.venv/bin/python -P -m pytest -m "long or not long" tests/host/test_parity.py tests/host/test_full_size.py $(ARGS)

bench: host
	@.venv/bin/python -m benchmarks.counted
	@.venv/bin/python -m benchmarks.measured $(ARGS)
	@.venv/bin/python -m benchmarks.started
	@.venv/bin/python -m benchmarks.interpolated
	@.venv/bin/python -m benchmarks.rendered
	@.venv/bin/python -m benchmarks.saved
	@.venv/bin/python -m benchmarks.lengths
	@.venv/bin/python -m benchmarks.queued

bench-long: host
	@.venv/bin/python -m benchmarks.joins $(ARGS)

train-tiny: host
	@.venv/bin/python -m dev.tiny $(ARGS)

reproduce: host
	@.venv/bin/python -m dev.tiny.reproduce $(ARGS)

lint: host
	@.venv/bin/python -m ruff check .

host:
	@$(PYTHON) -m dev.environment

clean:
	@rm -rf .venv .venv.lock .host out .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
