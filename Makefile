# SPDX-License-Identifier: GPL-2.0-or-later
#
# The commands for users. `make demo` and `make check` do all set-up first;
# later runs repeat only what changed.

BUILD := build
GUEST := qemu-system-x86_64 qemu-img
# The suites of `make check` and of `make check-ci`: deterministic, and their
# results do not depend on the machine's speed
CHECK := tools patches engine unit qtest guest nbd docs
CHECK_CI := engine-san asan tsan campaign interop
# `make check-unit T=part-of-a-name`
only = $(if $(T),--only '$(T)')

.DEFAULT_GOAL := help
.PHONY: help demo check check-ci fuzz mutants coverage model setup setup-clang configure \
	build lay campaign random-peers downtime scribble bench bench-quick bench-compare \
	series series-check \
	clean distclean \
	$(CHECK:%=check-%) $(CHECK_CI:%=check-%)

help: ## list the targets
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z%][a-z%-]*\):[^#]*## /  \1|/p' Makefile | \
		awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'
	@echo "  suites of check:    $(CHECK)"
	@echo "  suites of check-ci: $(CHECK_CI)"

demo: configure ## migrate a guest with two disks over one socket, and show it
	@scripts/build $(GUEST)
	@python3 tests/guest/demo.py --build $(BUILD)/qemu

check: configure ## run the tests that every change has to pass
	@scripts/check $(CHECK)

check-ci: configure ## run the other tests of CI: sanitizers, faults, interop
	@scripts/check $(CHECK_CI)

check-%: ## run one suite (T=part: only tests with "part" in their name)
$(filter-out check-engine%,$(CHECK:%=check-%) $(CHECK_CI:%=check-%)): \
check-%: configure
	@scripts/check $(only) $*

# The engine needs no QEMU
check-engine check-engine-san: check-%: setup
	@scripts/check $(only) $*

SECONDS := 600
fuzz: setup-clang ## run the fuzzers of the protocol engine (SECONDS=600)
	@scripts/fuzz --seconds $(SECONDS)

model: setup ## run the engine's model with far more states (long)
	@[ -e $(BUILD)/engine/build.ninja ] || meson setup $(BUILD)/engine
	@meson test -C $(BUILD)/engine --test-args='-m thorough' \
		--timeout-multiplier=10 test-mux-model

mutants: setup ## mutation test of the engine (T=tx.c: of that file; long)
	@scripts/mutants $(T)

coverage: setup-clang ## lines and branches of the engine that its tests execute
	@scripts/coverage

campaign: configure ## random faults (ROUNDS=n SEED=n); TABLE=1: all of them (T=part)
	@scripts/build $(GUEST) tests/qtest/migration/mux-relay
	@python3 tests/guest/campaign.py --build $(BUILD)/qemu \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(TABLE),--table) $(if $(STORAGE),--storage $(STORAGE)) $(only)

random-peers: configure ## migrate with faulty peers (ROLE=source|destination, ROUNDS=n, SEED=n, ROUND=n)
	@scripts/build $(firstword $(GUEST))
	@cd tests/interop && python3 random_peers.py --build ../../$(BUILD)/qemu \
		--role $(or $(ROLE),source) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND))

downtime: configure ## check how long the guest is stopped (needs root)
	@scripts/build $(GUEST) tests/qtest/migration/mux-relay
	@python3 tests/guest/test_guest.py --build $(BUILD)/qemu downtime latency

scribble: configure ## race many writers against the mirrors (TIMES=10; random)
	@scripts/build $(GUEST)
	@python3 tests/guest/test_guest.py --build $(BUILD)/qemu \
		$$(yes scribble | head -n $(or $(TIMES),10))

BENCH = python3 tests/guest/bench.py --build $(BUILD)/qemu --output $(BUILD)/bench \
	$(if $(ROWS),--rows $(ROWS))
bench: configure ## compare speed and cost with sockets and unpatched QEMU (ROWS=1,5)
	@./configure --plain
	@scripts/build $(GUEST) tests/bench/mux-bench
	@scripts/build --plain $(GUEST)
	@$(BENCH) --plain $(BUILD)/plain

bench-quick: configure ## a few rows of bench, with few pairs (3 minutes)
	@scripts/build $(GUEST) tests/bench/mux-bench
	@$(BENCH) --quick

bench-compare: ## compare the last bench with a recorded one (WITH=results.json)
	@$(BENCH) --compare $(or $(WITH),$(error WITH=FILE: the recorded results.json))

setup: ## install missing packages (apt, sudo)
	@scripts/setup-host

# For the fuzzers and coverage
setup-clang:
	@scripts/setup-host clang libclang-rt-dev llvm

configure: setup ## get QEMU's source, lay the series on it, configure
	@./configure

lay: ## bring build/src up to date with the series
	@scripts/lay

build: configure ## build QEMU with the series
	@scripts/build

series: configure ## write the series as commits to build/series, to read and hand over
	@scripts/series

series-check: configure ## the same, and build every commit (long)
	@scripts/series --build

clean: ## remove what was built, keep QEMU's source
	rm -rf $(BUILD)/qemu $(BUILD)/qemu-* $(BUILD)/plain $(BUILD)/bench \
		$(BUILD)/engine $(BUILD)/engine-* \
		$(BUILD)/fuzz $(BUILD)/coverage $(BUILD)/docs \
		$(BUILD)/branch* $(BUILD)/series $(BUILD)/logs

distclean: ## remove everything that was made here
	rm -rf $(BUILD)
