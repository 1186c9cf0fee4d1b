#!/usr/bin/env bash
# Measure one trained network under SEMI2K on loopback, lan and wan, with all ReLUs, as trained, and without any, to
# results/private_inference_price.csv; fit this machine's rates to them; and ask about 200 images there,
# for the agreement with plaintext. It takes four minutes on two idle cores for a ResNet-20; on a busy machine its
# seconds mean nothing. Needs .venv and .venv-mpc.
#
# CHECKPOINT: last.pth.tar of a run. MACHINE: what the table of rates calls this machine. DATA: folder of the data set, if
# not where the run had it. WORK: folder of the bundle and the reports. OUT: another table.
set -euo pipefail
source "$(dirname "$0")/here.sh"
work=${WORK:-quickstart_runs/mpc_price}
export PYTHONPATH=$PWD

.venv/bin/python -m autorep.mpc export --checkpoint "${CHECKPOINT:?give CHECKPOINT=RUN_FOLDER/last.pth.tar}" \
    --out "$work/bundle" --images 200 ${DATA:+--data_path "$DATA"}
for net in wan lan loopback; do
    mkdir -p "$work/$net"
    git rev-parse --short HEAD > "$work/$net/commit"
    .venv-mpc/bin/python -m autorep.mpc run "$work/bundle" --engine spu-semi2k --net "$net" --images 5 --repeat 5 \
        --truncation exact --compare --out "$work/$net"
done
.venv-mpc/bin/python -m autorep.mpc rates "$work"/{loopback,lan,wan}/pi.json --machine "${MACHINE:?give the MACHINE a name}"
.venv-mpc/bin/python scripts/mpc_results.py "${OUT:-results/private_inference_price.csv}" "$work"/{wan,lan,loopback}/pi.json
.venv-mpc/bin/python -m autorep.mpc run "$work/bundle" --engine spu-semi2k --net loopback --images 200 --batch 20 \
    --truncation exact --repeat 3 --out "$work/agreement"
