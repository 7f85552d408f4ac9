# SPDX-License-Identifier: GPL-2.0-or-later
#
# What a person types. `make demo` and `make check` do all set-up first;
# what is done already is not done again.

BUILD := build
NINJA := ninja -C $(BUILD)/qemu
PROGRAMS := qemu-system-x86_64 qemu-img qemu-io qemu-nbd \
	storage-daemon/qemu-storage-daemon
SUITES := tools patches engine engine-san fuzz unit interop nbd qtest guest \
	campaign docs asan tsan
# `make check-unit T=part-of-a-name`
only = $(if $(T),--only $(T))

.DEFAULT_GOAL := help
.PHONY: help demo check check-full fuzz mutants coverage setup configure \
	build lay campaign bench series series-check engine clean distclean \
	$(SUITES:%=check-%)

help: ## list the targets
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z%][a-z%-]*\):[^#]*## /  \1|/p' Makefile | \
		awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'
	@echo "  suites for check-%: $(SUITES)"

demo: build ## migrate a guest with two disks over one socket, and show it
	python3 tests/guest/demo.py --build $(BUILD)/qemu

check: configure ## all tests (about half an hour on two cores, set-up included)
	@scripts/check

check-full: configure ## the same with the long forms of some tests
	@scripts/check --full

check-%: ## one suite of tests (T=part: only tests so named)
$(filter-out check-engine% check-fuzz,$(SUITES:%=check-%)): check-%: configure
	@scripts/check $(only) $*

# The engine needs no QEMU
check-engine check-engine-san check-fuzz: check-%: setup
	@scripts/check $(only) $*

SECONDS := 600
fuzz: setup ## run the fuzzers of the protocol engine (SECONDS=600)
	@scripts/fuzz --seconds $(SECONDS)

mutants: setup ## change each thing in the engine: is it noticed? (T=tx.c, long)
	@scripts/mutants $(T)

coverage: setup ## lines and branches of the engine that its tests run
	@scripts/coverage

campaign: build ## migrations that go wrong at random (ROUNDS=n, SEED=n) or in each phase (TABLE=1)
	$(NINJA) tests/qtest/migration/mux-relay
	python3 tests/guest/campaign.py --build $(BUILD)/qemu \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(TABLE),--table $(only))

bench: build ## measure it beside the way with an NBD server
	python3 tests/guest/bench.py --build $(BUILD)/qemu

setup: ## install missing packages (apt, sudo)
	@scripts/setup-host

configure: setup ## get QEMU's source, lay the series on it, configure
	@./configure

lay: ## bring build/src up to date with the series
	@scripts/lay

build: configure ## build QEMU with the series
	@$(NINJA) $(PROGRAMS)

series: configure ## write the mails of the series to build/series
	@scripts/series

series-check: configure ## the same, and build every commit (long)
	@scripts/series --build

clean: ## remove what was built, keep QEMU's source
	rm -rf $(BUILD)/qemu $(BUILD)/qemu-* \
		$(BUILD)/engine $(BUILD)/engine-* \
		$(BUILD)/fuzz $(BUILD)/coverage $(BUILD)/docs \
		$(BUILD)/branch* $(BUILD)/series $(BUILD)/logs

distclean: ## remove everything that was made here
	rm -rf $(BUILD)
