# sriovd: make help
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= /usr/bin/python3
VENV := .venv
RUN := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

DESTDIR ?=
PREFIX ?= /usr
LIBDIR = $(DESTDIR)$(PREFIX)/lib
INCLUDEDIR = $(DESTDIR)$(PREFIX)/include
SHAREDIR = $(DESTDIR)$(PREFIX)/share
BINARY = $(DESTDIR)$(PREFIX)/sbin/sriovd
READER = $(DESTDIR)$(PREFIX)/bin/sriovd-trace

RUNTIME_PACKAGES := python3 python3-dbus-next python3-pyroute2 python3-pyudev python3-systemd
# A package since Debian 13; on Debian 12 it comes from PyPI and lives with sriovd.
PIP := $(PYTHON) -m pip --disable-pip-version-check
HAS_MSGSPEC = $(PYTHON) -Ic 'import sys; sys.path.insert(0, "$(LIBDIR)/sriovd"); import msgspec' 2>/dev/null
TEST_PACKAGES := dbus e2fsprogs gcc git libc6-dev mmdebstrap pciutils python3-dbusmock python3-venv systemd udev

.PHONY: help demo run test lab setup install uninstall clean

help:
	@echo "make demo       sriovd on a simulated host tells its story, with busctl, in under a minute"
	@echo "make run        sriovd on a simulated host; stays up and prints its bus address"
	@echo "make test       every test that this machine can run, the real-kernel lab included"
	@echo "make lab        a root shell on a real Debian kernel with sriovd running (LAB_KERNEL=6.1|6.12|7.2)"
	@echo "make install    onto this host, as a systemd service (DESTDIR=, PREFIX=)"
	@echo "make uninstall  and off it again; state and policy stay"

demo: setup
	@$(RUN) -m tests.demo

run: setup
	@$(RUN) -m sriovd --simulated --private-bus

test: setup
	@.ci/test

lab: setup
	@$(RUN) -m tests.lab shell

# Debian packages for what is linked against system libraries, a virtual environment for the rest.
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml Makefile
	@missing=$$(for p in $(RUNTIME_PACKAGES) $(TEST_PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "Installing: $$missing"; \
	    $(SUDO) apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -q -y --no-install-recommends $$missing; fi
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check hypothesis msgspec mypy pytest pytest-timeout pytest-xdist ruff
	touch $@

install:
	@missing=$$(for p in $(RUNTIME_PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ] && [ -z "$(DESTDIR)" ]; then apt-get install -y --no-install-recommends $$missing; fi
	install -d $(LIBDIR)/sriovd
	@$(HAS_MSGSPEC) || [ -n "$(DESTDIR)" ] || apt-get install -y --no-install-recommends python3-msgspec || true
	@$(HAS_MSGSPEC) || $(PIP) --version >/dev/null 2>&1 || [ -n "$(DESTDIR)" ] || \
	    apt-get install -y --no-install-recommends python3-pip
	$(HAS_MSGSPEC) || $(PIP) install -q --root-user-action=ignore --no-deps --upgrade --target=$(LIBDIR)/sriovd msgspec
	cp -r --no-preserve=ownership sriovd $(LIBDIR)/sriovd/
	find $(LIBDIR)/sriovd -name __pycache__ -prune -exec rm -rf {} +
	$(PYTHON) -m compileall -q -s "$(DESTDIR)" $(LIBDIR)/sriovd
	install -d $(dir $(BINARY))
	printf '%s\n' '#!$(PYTHON) -I' 'import sys' 'sys.path.insert(0, "$(PREFIX)/lib/sriovd")' \
	    'from sriovd.__main__ import main' 'sys.exit(main())' > $(BINARY)
	install -d $(dir $(READER))
	printf '%s\n' '#!$(PYTHON) -I' 'import sys' 'sys.path.insert(0, "$(PREFIX)/lib/sriovd")' \
	    'from sriovd.trace.__main__ import main' 'sys.exit(main())' > $(READER)
	chmod 755 $(BINARY) $(READER)
	install -D -m 644 -t $(LIBDIR)/systemd/system units/sriovd.service
	install -D -m 644 -t $(LIBDIR)/systemd/catalog units/sriovd.catalog
	install -D -m 644 units/sriovd.sysusers $(LIBDIR)/sysusers.d/sriovd.conf
	install -D -m 644 -t $(LIBDIR)/udev/rules.d udev-rules/61-sriovd.rules
	install -D -m 644 -t $(SHAREDIR)/dbus-1/system.d units/org.sriovd1.conf
	install -D -m 644 -t $(SHAREDIR)/dbus-1/system-services units/org.sriovd1.service
	install -D -m 644 -t $(SHAREDIR)/dbus-1/interfaces sriovd/bus/org.sriovd1.xml
	install -D -m 644 -t $(SHAREDIR)/polkit-1/actions units/org.sriovd1.policy
	install -D -m 644 units/sriovd.rules $(SHAREDIR)/polkit-1/rules.d/50-sriovd.rules
	install -D -m 644 -t $(INCLUDEDIR) sriovd/trace/sriovd-trace.h
	install -D -m 644 -t $(SHAREDIR)/doc/sriovd README.md
	@if [ -z "$(DESTDIR)" ]; then $(MAKE) --no-print-directory .reload; \
	    echo "Installed. Start it: systemctl enable --now sriovd"; fi

.PHONY: .reload
.reload:
	-systemd-sysusers
	-systemctl daemon-reload
	-journalctl --update-catalog
	-udevadm control --reload
	-busctl --quiet call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig

uninstall:
	-[ -n "$(DESTDIR)" ] || systemctl disable --now sriovd
	rm -rf $(LIBDIR)/sriovd $(SHAREDIR)/doc/sriovd
	rm -f $(BINARY) $(READER) $(LIBDIR)/systemd/system/sriovd.service $(LIBDIR)/systemd/catalog/sriovd.catalog \
	    $(LIBDIR)/sysusers.d/sriovd.conf $(LIBDIR)/udev/rules.d/61-sriovd.rules \
	    $(SHAREDIR)/dbus-1/system.d/org.sriovd1.conf $(SHAREDIR)/dbus-1/system-services/org.sriovd1.service \
	    $(SHAREDIR)/dbus-1/interfaces/org.sriovd1.xml $(SHAREDIR)/polkit-1/actions/org.sriovd1.policy \
	    $(SHAREDIR)/polkit-1/rules.d/50-sriovd.rules $(INCLUDEDIR)/sriovd-trace.h
	@[ -n "$(DESTDIR)" ] || $(MAKE) --no-print-directory .reload

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
