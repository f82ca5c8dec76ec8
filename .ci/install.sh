#!/usr/bin/env bash
# Makes .venv and installs this project into it with its pinned dependencies. Safe to run again at any time.
# torch comes without CUDA: where a plain install would bring CUDA libraries, its CPU build is taken from PyTorch's own index first.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_cpu_index=https://download.pytorch.org/whl/cpu

say() { echo "install: $*" >&2; }
fail() { say "error: $*"; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH; install one, or name it: PYTHON=/path/to/python make test"
}

# Asks pip what a plain `pip install torch` would bring, without bringing it.
#   prints `cpu`, `cuda`, or `none` (this index has no such torch for this Python)
torch_on_index() {
    local report
    report=$(mktemp)
    if ! "$pip" install --quiet --dry-run --ignore-installed --report "$report" -c constraints.txt "$torch" >/dev/null 2>&1; then
        echo none
    else
        .venv/bin/python - "$report" <<'PY'
import json, re, sys

packages = {p["metadata"]["name"].lower(): p["metadata"]["version"] for p in json.load(open(sys.argv[1]))["install"]}
cuda = any(re.match(r"(nvidia|cuda|triton|pytorch-triton)\b", name) for name in packages) or "+cu" in packages["torch"]
print("cuda" if cuda else "cpu")
PY
    fi
    rm -f "$report"
}

install_torch() {
    case "$(torch_on_index)" in
        cpu)
            "$pip" install --quiet -c constraints.txt "$torch" ;;
        *)
            say "taking the CPU build of torch from $torch_cpu_index"
            "$pip" install --quiet --retries 1 --no-deps --index-url "$torch_cpu_index" "$torch" \
                || fail "no CPU build of $torch for $("$python" -V): a plain install would bring CUDA or finds none, and $torch_cpu_index" \
                        "could not be used. Put one into .venv by hand (.venv/bin/pip install WHEEL), then run this again" ;;
    esac
}

python=$(find_python)
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    say "making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv || { rm -rf .venv; fail "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; }
fi
pip=.venv/bin/pip
torch=$(grep '^torch==' constraints.txt)

say "installing pinned dependencies (a few minutes the first time)"
.venv/bin/python -m pip install --quiet -c constraints.txt --upgrade pip
.venv/bin/python -c "import torch, sys; sys.exit(torch.__version__.partition('+')[0] != '${torch#torch==}')" >/dev/null 2>&1 || install_torch
"$pip" install --quiet -c constraints.txt --build-constraint constraints.txt -e '.[cpu,server,toolchain,tensorrt,optimum,dev]'
touch .venv/installed
say "ready: .venv/bin/sstool"
