# SPDX-License-Identifier: GPL-2.0-or-later
#
# What a person types. `make demo` and `make check` do all set-up first;
# what is done already is not done again.

BUILD := build
NINJA := ninja -C $(BUILD)/qemu
PROGRAMS := qemu-system-x86_64 qemu-img qemu-io qemu-nbd \
	storage-daemon/qemu-storage-daemon
SUITES := tools patches engine engine-san unit nbd qtest guest docs
# `make check-unit T=part-of-a-name`
only = $(if $(T),--only $(T))

.DEFAULT_GOAL := help
.PHONY: help demo check setup configure build lay bench series series-check \
	engine clean distclean $(SUITES:%=check-%)

help: ## list the targets
	@echo "usage: make TARGET"
	@sed -n 's/^\([a-z%][a-z%-]*\):[^#]*## /  \1|/p' Makefile | \
		awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'
	@echo "  suites for check-%: $(SUITES)"

demo: build ## migrate a guest with two disks over one socket, and show it
	python3 tests/guest/demo.py --build $(BUILD)/qemu

check: configure ## all tests (about 20 minutes on two cores)
	@scripts/check

check-%: ## one suite of tests (T=part: only tests so named)
$(filter-out check-engine%,$(SUITES:%=check-%)): check-%: configure
	@scripts/check $(only) $*

# The engine needs no QEMU
check-engine check-engine-san: check-%: setup
	@scripts/check $(only) $*

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
	rm -rf $(BUILD)/qemu $(BUILD)/engine $(BUILD)/engine-san \
		$(BUILD)/docs $(BUILD)/branch* $(BUILD)/series $(BUILD)/logs

distclean: ## remove everything that was made here
	rm -rf $(BUILD)
