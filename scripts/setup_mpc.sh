#!/usr/bin/env bash
# Make .venv-mpc, the environment of the secure-computation engine (about 1 GB; Python 3.10 or 3.11). Re-runnable.
set -euo pipefail
if [[ ${PYTHON:-} == */* ]]; then PYTHON=$(realpath -sm -- "$PYTHON"); fi  # of the folder that the caller stands in
cd "$(dirname "$0")/.."

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3.10 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: the engine needs Python 3.10 or 3.11; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
    return 1
}

stamp=.venv-mpc/installed-requirements.txt
if [ -x .venv-mpc/bin/python ] && cmp -s requirements-mpc.txt "$stamp"; then
    echo ".venv-mpc is up to date"
    exit 0
fi
python=$(find_python)
[ -x .venv-mpc/bin/python ] || "$python" -m venv .venv-mpc
.venv-mpc/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-mpc.txt
.venv-mpc/bin/python -c 'import spu, jax, numpy; print("spu", spu.__version__, "jax", jax.__version__, "numpy", numpy.__version__)'
cp requirements-mpc.txt "$stamp"
echo ".venv-mpc is ready"
