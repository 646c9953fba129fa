# Front door: `make demo`, `make test`, `make build`, `make bench`.

BUILD ?= build
CMAKE_FLAGS ?=
DEMO_MODEL = $(BUILD)/demo/wiki-mamba-7m-hxq

.PHONY: build demo test bench dependencies clean

build: dependencies
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release $(CMAKE_FLAGS) >$(BUILD).log 2>&1 || (cat $(BUILD).log; exit 1)
	@cmake --build $(BUILD)

demo: CMAKE_FLAGS += -DHXQ_BUILD_TESTS=OFF
demo: build
	@scripts/demo.sh $(BUILD)/hxq $(BUILD)/demo

test: dependencies
	@scripts/test.sh $(BUILD)

bench: CMAKE_FLAGS += -DHXQ_BUILD_BENCH=ON
bench: build
	@scripts/bench.sh $(BUILD)

dependencies:
	@scripts/install_dependencies.sh

clean:
	rm -rf $(BUILD) $(BUILD).log
