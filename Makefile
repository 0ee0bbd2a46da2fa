# make demo    eight prompts with a real model, in an environment made here
# make test    lint, types and tests: what .ci/run runs
# make lint    the first two of these
# make docs    docs/commands.md, from the program's own help
# make wheel   the package as a file, in dist/
# make system  a browser and a screen for the tests that want one, by apt; they are skipped without
# make gpu-check   the tests of the engine with layers on a GPU; see docs/gpu.md
# make rpc-check   the tests of --rpc, with a llama.cpp that is built with RPC, in build/rpc
# make clean   remove all that this file makes
#
# The first of demo and test builds llama.cpp, which takes some minutes; after that nothing is
# made again unless pyproject.toml changes. Another Python: make clean test PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint docs wheel system gpu-check rpc-check clean

demo: $(VENV)/installed
	@$(BIN)/python -m logo_local.commands.showcase

test: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/installed
	$(BIN)/python docs/generate_commands.py > docs/commands.md.new
	mv docs/commands.md.new docs/commands.md

wheel: $(VENV)/installed-test
	$(BIN)/python -m build --wheel

# Debian and Ubuntu only, and only as the superuser: elsewhere it says what is left out.
SYSTEM := chromium xvfb xdotool fonts-dejavu-core
system:
	$(call apt,$(SYSTEM),the tests of the page and of the window will be skipped)

# $(call apt,PACKAGES,what happens without them)
define apt
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    { dpkg -s $(1) > /dev/null 2>&1 \
	      || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	           apt-get -qq install -y --no-install-recommends $(1) > /dev/null; }; } \
	    || echo "warning: not installed: $(1); $(2)" >&2; \
	else echo "not installed by make: $(1); without them, $(2)" >&2; fi
endef

# An environment with another build of llama.cpp; everything else is that of $(VENV). Never from
# pip's cache, and never into it: the cache does not know with which options a build was made.
# Vulkan's packages include a driver that runs on the CPU (Mesa's llvmpipe), which is used if there
# is no GPU. That of Mesa 22.3 uses freed buffers, which ends the process. Its compiler takes
# minutes for llama.cpp's shaders: it is told not to optimise, and keeps the results in ~/.cache.
GPU_BACKEND  ?= vulkan
GPU          := build/gpu/$(GPU_BACKEND)
CMAKE_vulkan := -DGGML_VULKAN=ON
CMAKE_cuda   := -DGGML_CUDA=ON
CMAKE_hip    := -DGGML_HIP=ON
CMAKE_metal  := -DGGML_METAL=ON
VULKAN       := mesa-vulkan-drivers libvulkan-dev glslc spirv-headers
SITE         := import sysconfig; print(sysconfig.get_path("purelib"))
GPU_TESTS    := tests/test_gpu.py tests/test_parity.py tests/test_engine.py

gpu-check: $(GPU)/installed
	@if [ $(GPU_BACKEND) = vulkan ] && ! $(GPU)/bin/python -c \
	    'import sys; from logo_local.llama.devices import gpus; sys.exit(not gpus())'; then \
	    export GGML_VK_VISIBLE_DEVICES=0 GALLIVM_PERF=nopt; \
	    version="$$(dpkg-query -W -f '$${Version}' mesa-vulkan-drivers 2> /dev/null || true)"; \
	    if [ -n "$$version" ] && dpkg --compare-versions "$$version" lt 23; then \
	        echo "error: Vulkan on the CPU does not work with Mesa $$version"; \
	        echo "hint: install a newer one, on Debian 12 that of bookworm-backports"; \
	        exit 1; fi >&2; fi; \
	for layers in -1 3; do \
	    GGML_VK_DISABLE_F16=1 LOGO_TEST_GPU_LAYERS=$$layers \
	        $(GPU)/bin/python -m pytest $(GPU_TESTS) || exit 1; done

$(GPU)/installed: pyproject.toml | $(VENV)/installed-test
	$(if $(CMAKE_$(GPU_BACKEND)),,$(error GPU_BACKEND can be vulkan, cuda, hip or metal))
	$(if $(filter vulkan,$(GPU_BACKEND)),$(call apt,$(VULKAN),llama.cpp cannot be built with Vulkan))
	@rm -rf $(GPU)
	@$(BIN)/python -m venv $(GPU)
	@folder="$$($(BIN)/python -c '$(SITE)')"; \
	    echo "import site; site.addsitedir('$$folder')" > "$$($(GPU)/bin/python -c '$(SITE)')/all.pth"
	@echo "Building llama.cpp with $(CMAKE_$(GPU_BACKEND)), which takes 10 minutes or more"
	CPLUS_INCLUDE_PATH=$(CURDIR)/tests/gpu/include CMAKE_ARGS="$(CMAKE_$(GPU_BACKEND))" \
	    $(GPU)/bin/python -m pip install --quiet --no-cache-dir --no-deps --force-reinstall \
	    --no-binary llama-cpp-python \
	    "llama-cpp-python==$$($(BIN)/python -c 'import llama_cpp; print(llama_cpp.__version__)')"
	@touch $@

# An environment of its own for the build: pip's cache does not distinguish builds, so it is not
# used. Everything else comes from the environment of the tests.
RPC := build/rpc
rpc-check: $(RPC)/installed
	$(BIN)/python -m pytest tests/test_rpc.py tests/test_rpc_build.py

$(RPC)/installed: pyproject.toml $(VENV)/installed-test
	@echo "Building llama.cpp with RPC, which takes some minutes"
	@$(BIN)/python -m venv --clear $(RPC)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(RPC)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tests.pth"
	@version=$$($(BIN)/python -c 'import llama_cpp; print(llama_cpp.__version__)'); \
	    CMAKE_ARGS="-DGGML_RPC=ON" $(RPC)/bin/python -m pip --disable-pip-version-check install \
	    --quiet --no-cache-dir --ignore-installed --no-deps --no-binary llama-cpp-python \
	    "llama-cpp-python==$$version"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "error: Python 3.10 or newer is needed, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
	    echo "hint: name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "error: $(PYTHON) cannot make a virtual environment"; \
	    echo "hint: on Debian and Ubuntu: apt install python3-venv"; exit 1; } >&2

# What is needed to run; $(call install,...) is pip with a word about the one thing that can lack.
define install
	@echo "Installing; llama.cpp is built from source the first time, which takes some minutes"
	@$(PIP) install --quiet --editable "$(1)" || { \
	    echo "error: the installation failed"; \
	    echo "hint: llama.cpp needs a C++ compiler; on Debian and Ubuntu: apt install g++"; \
	    exit 1; } >&2
endef

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(call install,.[demo])
	@touch $@

# Where pip's index has only builds of torch with CUDA (several GB), the CPU build does as well:
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	$(call install,.[test])
	@touch $(VENV)/installed $@
