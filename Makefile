# make run    build, and turn connections away on 127.0.0.1:2525 and [::1]:2525
# make test   everything the tests need, then pytest
# make lint   ruff and mypy
# make failover  diversion hosts that fail and come back, and how many clients got no banner
# make bench  the benchmarks (pytest-benchmark)
# make faults, make floods, make soak
#             what goes wrong and who comes too often, and the tables of
#             docs/reliability.md from it; floods and soak take minutes and want root
# make fuzz   5 million executions of the fuzz targets (FUZZ_TIMES=10: 50 million); needs clang
# make sanitize  loops, tests and parts under the sanitizers and valgrind: 20 minutes; needs
#             gcc, clang, libclang-rt-dev and valgrind
# make coverage  which lines of ext/ and turnaway/ the tests run: 15 minutes; needs clang,
#             llvm and libclang-rt-dev (COVER='run report tests/unit': these tests alone)
# make dist   the sdist, the wheel made from it, and what release tools say of both
# make test-installed  the system tests against the sdist, installed by pip elsewhere
# make deb    the Debian source package and package, in build/deb (contrib/debian/README.md)
# make test-deb  that package in a root directory of its own; wants root and apt's mirror
# make icon   the PNG and ICO files from docs/images/turnaway.svg; needs librsvg2-bin, imagemagick
# make docs   the documentation site, in docs/_build/html; a warning is an error; needs mandoc
# make clean  what the others made
#
# A stamp in .venv tells what is installed there, so that nothing is done twice.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
EXT    := $(wildcard ext/*.pyx ext/*.pxd ext/*.h) setup.py

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' turnaway/__init__.py)
# The same commit makes the same archives.
EPOCH  := $(shell git log -1 --format=%ct 2>/dev/null)
DATED  := $(if $(EPOCH),SOURCE_DATE_EPOCH=$(EPOCH))

.PHONY: run test failover lint bench faults floods soak fuzz sanitize coverage dist test-installed deb test-deb icon docs clean

$(VENV)/stamp-venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/stamp-build: $(VENV)/stamp-venv pyproject.toml
	$(PIP) 'pip>=25.1'
	$(PIP) --group build
	touch $@

# The package itself, editable: Python is used from the tree, the extension is
# built into it.
$(VENV)/stamp-package: $(VENV)/stamp-build $(EXT)
	TURNAWAY_STRICT=1 $(PIP) --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/stamp-test: $(VENV)/stamp-build
	$(PIP) --group test
	touch $@

$(VENV)/stamp-lint: $(VENV)/stamp-build
	$(PIP) --group lint --group test
	touch $@

$(VENV)/stamp-docs: $(VENV)/stamp-build
	$(PIP) --group docs
	touch $@

$(VENV)/stamp-bench: $(VENV)/stamp-build
	$(PIP) --group bench --group test
	touch $@

$(VENV)/stamp-release: $(VENV)/stamp-build
	$(PIP) --group release
	touch $@

run: $(VENV)/stamp-package
	@echo
	@echo "Turning away on 127.0.0.1:2525 and [::1]:2525.  Look at it from another terminal:"
	@echo "    nc 127.0.0.1 2525        (or: telnet ::1 2525)"
	@echo "Control-C ends it."
	@echo
	@$(BIN)/turnaway-fast --foreground --pidfile none --log stderr --log-connections all \
		'Somecity, Earth' '127.0.0.1:2525 mx.example.com' '[::1]:2525 mx.example.com'

test: $(VENV)/stamp-package $(VENV)/stamp-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

failover: $(VENV)/stamp-package $(VENV)/stamp-test
	$(BIN)/python -m pytest -m failover tests/netns $(PYTEST_ARGS)

lint: $(VENV)/stamp-package $(VENV)/stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/stamp-package $(VENV)/stamp-bench
	$(BIN)/python -m bench build
	$(BIN)/python -m pytest bench --ignore bench/floods $(PYTEST_ARGS)

faults: $(VENV)/stamp-package $(VENV)/stamp-test
	$(BIN)/python -m pytest tests/faults --write-page \
		--ignore tests/faults/test_page.py $(PYTEST_ARGS)

floods: $(VENV)/stamp-package $(VENV)/stamp-bench
	$(BIN)/python -m bench build
	$(BIN)/python -m pytest bench/floods --write-page $(PYTEST_ARGS)

soak: $(VENV)/stamp-package $(VENV)/stamp-bench
	$(BIN)/python -m bench build
	unshare -n sh -c 'ip link set lo up && exec $(BIN)/python -m bench soak --write'

FUZZ_TIMES ?= 1

fuzz: $(VENV)/stamp-build
	$(BIN)/python tests/fuzz/fuzzers.py run --times $(FUZZ_TIMES)

sanitize: $(VENV)/stamp-package $(VENV)/stamp-test
	$(PIP) 'pytest-benchmark>=5' hdrhistogram pygal
	$(BIN)/python -m bench build
	$(BIN)/python tests/sanitize/sanitizers.py

coverage: $(VENV)/stamp-package $(VENV)/stamp-test
	$(PIP) 'coverage>=7.6'
	$(BIN)/python tests/cover/lines.py $(COVER)

dist: $(VENV)/stamp-release
	rm -rf dist
	$(DATED) $(BIN)/python -m build
	$(BIN)/check-manifest
	$(BIN)/twine check --strict dist/*
	$(BIN)/abi3audit --strict --summary dist/*.whl
	$(BIN)/auditwheel show dist/*.whl
	$(BIN)/auditwheel show dist/*.whl | grep -q '"manylinux_2_'

# INSTALLED: pytest's arguments; everything in tests/system without them.
INSTALLED ?=

test-installed: $(VENV)/stamp-release
	rm -rf build/sdist
	$(DATED) $(BIN)/python -m build --sdist --outdir build/sdist
	$(PYTHON) tests/packages/installed.py build/sdist/turnaway-$(VERSION).tar.gz $(INSTALLED)

# Debian's tools are written for Debian's Python: whatever comes before it in PATH
# is out of their way.
UNPACKED := build/deb/turnaway-$(VERSION)

deb: $(VENV)/stamp-release
	rm -rf build/deb
	$(DATED) $(BIN)/python -m build --sdist --outdir build/deb
	tar -C build/deb -xzf $(UNPACKED).tar.gz
	cd $(UNPACKED) && $(CURDIR)/$(BIN)/python setup.py --version
	cd $(UNPACKED) && mv build/cython/ext/*.c ext/ && rm -r build
	tar -C build/deb -czf build/deb/turnaway_$(VERSION).orig.tar.gz turnaway-$(VERSION)
	cp -R $(UNPACKED)/contrib/debian $(UNPACKED)/debian
	cd $(UNPACKED) && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage -us -uc
	lintian --fail-on error --allow-root \
		--suppress-tags bogus-mail-host,bogus-mail-host-in-debian-changelog \
		build/deb/turnaway_$(VERSION)-*.changes

test-deb: deb $(VENV)/stamp-package $(VENV)/stamp-test
	$(BIN)/python -m pytest -m package tests/packages $(PYTEST_ARGS)

SIZES := 16 32 48 128 512

icon: docs/images/turnaway.svg
	cd docs/images && for size in $(SIZES); do \
		rsvg-convert --width=$$size --height=$$size turnaway.svg \
			--output=turnaway-$$size.png || exit; done
	cd docs/images && convert turnaway-16.png turnaway-32.png turnaway-48.png turnaway.ico

docs: $(VENV)/stamp-docs
	$(BIN)/python -m sphinx -W --keep-going -n -E -j auto -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info turnaway/*.so
