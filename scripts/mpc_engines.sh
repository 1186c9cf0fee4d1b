#!/usr/bin/env bash
# Measure one trained network under every engine, to results/private_inference_engines.csv: SEMI2K with both kinds of
# truncation, ABY3 and CHEETAH on three links, each with all ReLUs, as trained, and without any; SEMI2K with 4 and 16
# images a query; and the agreement with plaintext on 100 images with local truncation. It takes about a quarter of an
# hour on two idle cores for a ResNet-20; on a busy machine its seconds mean nothing. Needs .venv and .venv-mpc.
#
# CHECKPOINT: last.pth.tar of a run. DATA: folder of the data set, if not where the run had it. WORK: folder of the
# bundle and the reports; existing reports are not made again. OUT: another table.
set -euo pipefail
source "$(dirname "$0")/here.sh"
work=${WORK:-quickstart_runs/mpc_engines}
table=${OUT:-results/private_inference_engines.csv}
export PYTHONPATH=$PWD

[ -e "$work/bundle/graph.json" ] || .venv/bin/python -m autorep.mpc export --out "$work/bundle" --images 100 \
    --checkpoint "${CHECKPOINT:?give CHECKPOINT=RUN_FOLDER/last.pth.tar}" ${DATA:+--data_path "$DATA"}
reports=()
measure() { # NAME LINK ENGINE FLAGS...
    local out="$work/$1-$2" link=$2 engine=$3
    shift 3
    if [ ! -e "$out/pi.json" ]; then
        mkdir -p "$out"
        git rev-parse --short HEAD > "$out/commit"
        .venv-mpc/bin/python -m autorep.mpc run "$work/bundle" --engine "$engine" --net "$link" --out "$out" "$@"
    fi
    reports+=("$out/pi.json")
    .venv-mpc/bin/python scripts/mpc_results.py "$table" "${reports[@]}" # the table grows as reports come in
}
for link in wan lan loopback; do
    measure semi2k "$link" spu-semi2k --images 5 --repeat 5 --compare --truncation exact
    measure semi2k-local "$link" spu-semi2k --images 5 --repeat 5 --compare --truncation local
    measure aby3 "$link" spu-aby3 --images 5 --repeat 5 --compare
done
for batch in 4 16; do
    measure "semi2k-batch$batch" wan spu-semi2k --images 16 --repeat 3 --batch "$batch" --truncation exact
    measure "semi2k-local-batch$batch" wan spu-semi2k --images 16 --repeat 3 --batch "$batch" --truncation local
done
measure semi2k-local-agreement loopback spu-semi2k --images 100 --batch 20 --truncation local
for link in loopback wan lan; do
    measure cheetah "$link" spu-cheetah --images 1 --repeat 2 --compare
done
