#!/usr/bin/env bash
# The three-way table under SEMI2K (loopback, lan, wan) and, for resnet20, CHEETAH: random weights, to results/. An hour
# on an idle machine; its timings are worth nothing on a busy one. Needs .venv and .venv-mpc. WORK: where bundles go.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-quickstart_runs/mpc_measure}
export PYTHONPATH=$PWD

.venv/bin/python scripts/mpc_random_bundle.py --arch resnet20 --relus 18842 --out "$work/resnet20/bundle"
.venv/bin/python scripts/mpc_random_bundle.py --arch resnet18_in --relus 12900 --images 2 --out "$work/resnet18_in/bundle"

reports=()
measure() { # ARCH ENGINE NET IMAGES REPEAT
    local out="$work/$1/$2-$3"
    .venv-mpc/bin/python -m autorep.mpc run "$work/$1/bundle" --engine "$2" --net "$3" --images "$4" --repeat "$5" \
        --compare --out "$out"
    reports+=("$out/pi.json")
}
for net in loopback lan wan; do
    measure resnet20 spu-semi2k "$net" 3 5
    measure resnet18_in spu-semi2k "$net" 1 3
done
measure resnet20 spu-cheetah loopback 1 3
.venv-mpc/bin/python scripts/mpc_results.py results/mpc_random_weights.csv "${reports[@]}"
