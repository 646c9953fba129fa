# Front door: `make demo`, `make test`, `make test-vllm`, `make build`, `make bench`, `make fuzz`, `make wheel`.

BUILD ?= build
CMAKE_FLAGS ?=
SECONDS ?= 60
EXECUTIONS ?=

.PHONY: build demo test test-vllm bench fuzz wheel dependencies clean

build: dependencies
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release $(CMAKE_FLAGS) >$(BUILD).log 2>&1 || (cat $(BUILD).log; exit 1)
	@grep "No nvcc" $(BUILD).log || true
	@cmake --build $(BUILD)

demo: CMAKE_FLAGS += -DHXQ_BUILD_TESTS=OFF
demo: build
	@scripts/demo.sh $(BUILD)/hxq $(BUILD)/demo

test: dependencies
	@scripts/test.sh $(BUILD)

test-vllm: dependencies
	@scripts/test_vllm.sh $(BUILD)

bench: dependencies
	@scripts/install_dependencies.sh libopenblas-dev
	@$(MAKE) --no-print-directory build CMAKE_FLAGS="$(CMAKE_FLAGS) -DHXQ_BUILD_TESTS=OFF -DHXQ_BUILD_BENCH=ON"
	@scripts/bench.sh $(BUILD)

fuzz: dependencies
	@scripts/install_dependencies.sh clang-14 libclang-rt-14-dev
	@scripts/fuzz.sh $(BUILD)-fuzz $(SECONDS) $(EXECUTIONS)

wheel: dependencies
	@scripts/wheel.sh $(BUILD)

dependencies:
	@scripts/install_dependencies.sh

clean:
	rm -rf $(BUILD) $(BUILD).log
