# make demo   export the embedded model, stream a completion, compare plain with self-speculative decoding
# make test   run the tests
# make lint   format check, lint and types
# make clean  remove the environment, caches and exported artifacts
# The first of these to run makes .venv with Python 3.11+ and installs pinned dependencies into it.

BIN := .venv/bin
DEMO := artifacts/demo
SAMPLED := --temperature 0.8 --top-p 0.95 --seed 1

define PROMPT
class Stack:
    """A last-in, first-out collection."""

    def __init__(self):
endef
export PROMPT

.PHONY: demo test lint clean

demo: .venv/installed
	@echo '$$ sstool export --recipe recipes/demo.yaml --out $(DEMO) --force'
	@$(BIN)/sstool export --recipe recipes/demo.yaml --out $(DEMO) --force
	@echo; echo '$$ sstool generate $(DEMO) --prompt "$$PROMPT" --max-new-tokens 69 $(SAMPLED)'
	@printf '%s' "$$PROMPT"
	@$(BIN)/sstool generate $(DEMO) --prompt "$$PROMPT" --max-new-tokens 69 $(SAMPLED)
	@echo; echo '$$ sstool bench $(DEMO) --prompts recipes/demo/prompts.jsonl $(SAMPLED)'
	@$(BIN)/sstool bench $(DEMO) --prompts recipes/demo/prompts.jsonl $(SAMPLED)

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find artifacts -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt .ci/install.sh
	@.ci/install.sh
