#!/usr/bin/env bash
# Run the quickstart's digits network under real two-party engines, in three maskings: all ReLU, as trained, no ReLU.
# Trains the network if it is missing. IMAGES (100) is the number of test digits to classify, OUT (quickstart_runs) the
# folder of the quickstart's runs.
set -euo pipefail
source "$(dirname "$0")/here.sh"
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
