#!/usr/bin/env bash
# Lint and test in .venv, which is made if it is missing. Arguments go to pytest; without any, all tests run, in up to
# four processes.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup_env.sh requirements-dev.txt
if [ $# = 0 ] || [[ "$*" == *engine* && "$*" != *"not engine"* ]]; then
    bash scripts/setup_mpc.sh || echo "no secure-computation engine can be installed here: its tests are skipped" >&2
fi
.venv/bin/python -m ruff check .
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # of what tests start, beside one another
[ $# != 0 ] || set -- --numprocesses auto --maxprocesses 4 --dist loadfile
exec .venv/bin/python -m pytest "$@"
