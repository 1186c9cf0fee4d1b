#!/usr/bin/env bash
# Make or reuse .venv and install a requirements file into it: bash scripts/setup_env.sh [requirements.txt]
# PYTHON names the interpreter (3.10 or later) that makes .venv. Run it again to complete what was killed.
set -euo pipefail
if [[ ${PYTHON:-} == */* ]]; then PYTHON=$(realpath -sm -- "$PYTHON"); fi  # of the folder that the caller stands in
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}
python=${PYTHON:-python3}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "error: $python is older than 3.10; set PYTHON to a newer one" >&2
        exit 2
    }
    "$python" -m venv --clear .venv || {
        echo "error: cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 2
    }
fi

stamp=.venv/.installed-$(cat requirements*.txt constraints.txt | cksum | cut -d' ' -f1)-$(basename "$requirements")
if [ ! -e "$stamp" ]; then
    # Install the tested pair of torch and torchvision, or any that fits if this Python or platform has no such build.
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --requirement "$requirements" || {
        echo "the tested versions cannot be installed here: installing the newest that $requirements allows" >&2
        .venv/bin/python -m pip install --quiet --requirement "$requirements"
    }
    touch "$stamp"
fi
