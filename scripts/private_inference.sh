#!/usr/bin/env bash
# The quickstart's digits network under real two-party engines: all ReLU, as trained, no ReLU left. Trains it if missing.
# IMAGES: how many test digits are asked about (default 100). OUT: where the quickstart's run folders are.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-quickstart_runs}
images=${IMAGES:-100}
run="$out/train_cifar_dapa2_distil_relay/resnet8_resnet8_digits_relay_0.003/cosine_ReLUs0.23wm_lr0.02mep40_quickstart"
bundle="$out/private_inference/bundle"

[ -e "$run/summary.json" ] && [ -e "$run/last.pth.tar" ] || OUT="$out" bash scripts/quickstart.sh
bash scripts/setup_mpc.sh
.venv/bin/python -m autorep.mpc export --checkpoint "$run/last.pth.tar" --out "$bundle" --images "$images"
.venv-mpc/bin/python -m autorep.mpc cost "$bundle"
for engine in spu-semi2k spu-cheetah; do
    .venv-mpc/bin/python -m autorep.mpc run "$bundle" --engine "$engine" --net loopback --images "$images" --compare \
        --out "$out/private_inference/$engine"
done
