#!/usr/bin/env bash
# Builds the sdist, builds the wheel from it, and uses the wheel in a fresh environment outside the checkout.
# Needs .venv (.ci/install.sh). Writes nothing into the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "check_wheel: error: $*" >&2; exit 1; }

# make_env NAME PACKAGE...: makes an environment with pinned versions of the packages.
make_env() {
    .venv/bin/python -m venv --without-pip "$work/$1"
    .venv/bin/pip --python "$work/$1/bin/python" install -qq --no-compile -c constraints.txt "${@:2}"
}

make_env build hatchling
build() {
    "$work/build/bin/python" -m hatchling build -d "$work/dist" -t "$1" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "no $1 can be built"; }
}

build sdist
mkdir "$work/source"
tar -xzf "$work"/dist/*.tar.gz -C "$work/source" --strip-components 1
for name in README.md LICENSE CHANGELOG.md CONTRIBUTING.md constraints.txt Makefile .ci/install.sh tests recipes; do
    [[ -e $work/source/$name ]] || fail "the sdist lacks $name"
done
(cd "$work/source" && build wheel)
wheel=$(echo "$work"/dist/*.whl)

.venv/bin/python - "$wheel" <<'PY' || fail "the wheel does not hold what the checkout holds"
import sys, zipfile
from pathlib import Path

DATA = {"calibration.jsonl", "page.css", "page.html.jinja", "page.js"}
sources = [(root, Path(root, package)) for root, package in (("runtime", "ssruntime"), ("toolchain", "sstool"), ("toolchain", "optimum"))]
expected = {p.relative_to(root).as_posix() for root, folder in sources for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}
found = {name for name in zipfile.ZipFile(sys.argv[1]).namelist() if ".dist-info/" not in name}
absent = DATA - {Path(name).name for name in found}
if found != expected or absent:
    sys.exit(f"missing: {sorted(expected - found) + sorted(absent)}; too many: {sorted(found - expected)}")
PY

make_env use "${wheel}[cli,cpu]"
.venv/bin/pip --python "$work/use/bin/python" check >/dev/null || fail "the wheel's dependencies do not fit each other"
cd "$work"
use/bin/python - <<'PY' || fail "the installed packages cannot be imported"
import sys
import ssruntime, sstool, ssruntime.backends.ort.backend

assert all(package.__file__.startswith(sys.prefix) for package in (ssruntime, sstool))
PY
use/bin/sstool --help >/dev/null || fail "sstool --help does not run"
use/bin/python - >/dev/null <<'PY' || fail "not every command shows its help"
import sys
from sstool.cli.group import COMMANDS
from sstool.cli.main import run

sys.exit(any(run([command, "--help"]) for command in COMMANDS))
PY
echo "$(basename "$wheel"): built from the sdist, installed and run"
