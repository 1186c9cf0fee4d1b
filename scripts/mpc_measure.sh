#!/usr/bin/env bash
# Measure the price of private inference, to results/private_inference.csv: resnet20 and resnet18_in at 12.9K ReLUs,
# with quadratic and linear polynomials, under SEMI2K on three network links and, for resnet20, ABY3 and CHEETAH; each
# with all ReLUs, as trained, and without any. It takes about half an hour on two idle cores; on a busy machine its
# seconds mean nothing. Needs .venv and .venv-mpc.
#
# CHECKPOINT_RESNET20, CHECKPOINT_RESNET18_IN: trained networks with quadratic polynomials; with _DEGREE1 at the end:
# with linear ones. A network without a checkpoint gets random weights, and its rows say so. DATA: folder of the data
# sets, if not where the run had them. WORK: folder of bundles and reports; existing reports are not made again. OUT:
# another table.
set -euo pipefail
source "$(dirname "$0")/here.sh"
work=${WORK:-quickstart_runs/mpc_measure}
table=${OUT:-results/private_inference.csv}
export PYTHONPATH=$PWD

reports=()
measure() { # ARCH DEGREE ENGINE LINK IMAGES REPEAT
    local arch=$1 degree=$2 variable checkpoint folder
    variable=CHECKPOINT_${arch^^}; [ "$degree" = 2 ] || variable+=_DEGREE1
    checkpoint=${!variable:-}
    folder="$work/$arch-degree$degree-${checkpoint:+trained}"; [ -n "$checkpoint" ] || folder+=random
    if [ ! -e "$folder/bundle/graph.json" ]; then
        if [ -n "$checkpoint" ]; then
            .venv/bin/python -m autorep.mpc export --checkpoint "$checkpoint" --out "$folder/bundle" --images 8 \
                ${DATA:+--data_path "$DATA"}
        else
            .venv/bin/python scripts/mpc_random_bundle.py --arch "$arch" --relus 12900 --degree "$degree" \
                --out "$folder/bundle"
        fi
    fi
    local out="$folder/$3-$4"
    if [ ! -e "$out/pi.json" ]; then
        mkdir -p "$out"
        git rev-parse --short HEAD > "$out/commit"
        .venv-mpc/bin/python -m autorep.mpc run "$folder/bundle" --engine "$3" --net "$4" --images "$5" --repeat "$6" \
            --truncation exact --compare --out "$out"
    fi
    reports+=("$out/pi.json")
    .venv-mpc/bin/python scripts/mpc_results.py "$table" "${reports[@]}" # the table grows as reports come in
}
semi2k() { # DEGREE LINK: both networks
    measure resnet18_in "$1" spu-semi2k "$2" 1 3
    measure resnet20 "$1" spu-semi2k "$2" 3 5
}
# The most important comes first.
semi2k 2 wan
semi2k 2 loopback
semi2k 1 wan
measure resnet20 2 spu-aby3 wan 3 5
measure resnet20 2 spu-aby3 loopback 3 5
measure resnet20 2 spu-cheetah loopback 1 3
measure resnet20 1 spu-aby3 wan 3 5
measure resnet20 1 spu-aby3 loopback 3 5
measure resnet20 1 spu-cheetah loopback 1 3
semi2k 2 lan
semi2k 1 loopback
semi2k 1 lan
