#!/usr/bin/env bash
# How long private inference takes, and how well that is predicted, to results/private_inference_price.csv: one trained
# network and resnet18_in with random weights and 12.9K ReLUs under SEMI2K on loopback, lan and wan, with all ReLUs, as
# they are, and without any. This machine's rates are fitted to all of these runs. At last 200 images are asked about, for
# the agreement with plaintext. It takes eight minutes on two idle cores for a ResNet-20; on a busy machine its seconds
# mean nothing. Needs .venv and .venv-mpc.
#
# CHECKPOINT: last.pth.tar of a run. MACHINE: what the table of rates calls this machine. DATA: folder of the data set, if
# not where the run had it. WORK: folder of bundles and reports. OUT: another table.
set -euo pipefail
source "$(dirname "$0")/here.sh"
work=${WORK:-quickstart_runs/mpc_price}
: "${CHECKPOINT:?give CHECKPOINT=RUN_FOLDER/last.pth.tar}" "${MACHINE:?give the MACHINE a name}"
export PYTHONPATH=$PWD

.venv/bin/python -m autorep.mpc export --checkpoint "$CHECKPOINT" \
    --out "$work/bundle" --images 200 ${DATA:+--data_path "$DATA"}
.venv/bin/python scripts/mpc_random_bundle.py --arch resnet18_in --relus 12900 --out "$work/random/bundle"
measure() { # FOLDER IMAGES REPEAT
    for net in wan lan loopback; do
        mkdir -p "$1/$net"
        git rev-parse --short HEAD > "$1/$net/commit"
        .venv-mpc/bin/python -m autorep.mpc run "$1/bundle" --engine spu-semi2k --net "$net" --images "$2" \
            --repeat "$3" --truncation exact --compare --out "$1/$net"
    done
}
measure "$work" 5 5
measure "$work/random" 1 3
.venv-mpc/bin/python -m autorep.mpc rates "$work"{,/random}/{loopback,lan,wan}/pi.json --machine "$MACHINE"
.venv-mpc/bin/python scripts/mpc_results.py "${OUT:-results/private_inference_price.csv}" \
    "$work"{,/random}/{wan,lan,loopback}/pi.json
.venv-mpc/bin/python -m autorep.mpc run "$work/bundle" --engine spu-semi2k --net loopback --images 200 --batch 20 \
    --truncation exact --repeat 3 --out "$work/agreement"
