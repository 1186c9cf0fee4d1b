#!/usr/bin/env bash
# Digits networks under real two-party engines, in three maskings: all ReLU, as trained, no ReLU. First the
# quickstart's, trained for a number of ReLUs, then one trained for the price of each link that it is run on.
# Trains what is missing. IMAGES (20) is the number of test digits to classify, OUT (quickstart_runs) the folder of the
# runs, SHARE (0.5) the share of the all-ReLU price that a network may cost.
set -euo pipefail
source "$(dirname "$0")/here.sh"
out=${OUT:-quickstart_runs}
images=${IMAGES:-20}
share=${SHARE:-0.5}
results="$out/private_inference"
baseline="$out/train_cifar/resnet8__digits/cosine_baseline_ReLUs0lr0.1ep30_quickstart"
searches="$out/train_cifar_dapa2_distil_relay/resnet8_resnet8_digits_relay_0.003"
counted="$searches/cosine_ReLUs0.23wm_lr0.02mep40_quickstart"

[ -e "$counted/summary.json" ] && [ -e "$counted/last.pth.tar" ] || OUT="$out" bash scripts/quickstart.sh
bash scripts/setup_mpc.sh

# measure NAME RUN_FOLDER ENGINE LINK
measure() {
    .venv/bin/python -m autorep.mpc export --checkpoint "$2/last.pth.tar" --out "$results/$1/bundle" --images "$images"
    .venv-mpc/bin/python -m autorep.mpc run "$results/$1/bundle" --engine "$3" --net "$4" --images "$images" --compare \
        --truncation exact --out "$results/$1/$3-$4"
}

.venv/bin/python -m autorep.mpc export --checkpoint "$counted/last.pth.tar" --out "$results/count/bundle" \
    --images "$images"
.venv-mpc/bin/python -m autorep.mpc cost "$results/count/bundle" --truncation exact
measure count "$counted" spu-cheetah loopback
for link in loopback lan wan; do
    # On loopback a link takes no time: there the price is in bytes.
    price=spu-semi2k$([ "$link" = loopback ] || echo ":$link")
    .venv/bin/python train_autorep.py --arch resnet8 --dataset digits --gpu cpu --batch_size 64 --out_dir "$out" \
        --price "$price" --price_budget "$share" --mask_epochs 40 --w_lr 0.002 --refit_every 20 --refit_until 100 \
        --pretrained_path "$baseline/last.pth.tar" --distil --teacher_path "$baseline/last.pth.tar" \
        --print_freq 1000 --ext quickstart --resume auto
    measure count "$counted" spu-semi2k "$link"
    measure "price-$link" "$searches/cosine_${price//:/-}_${share}_wm_lr0.001mep40_quickstart" spu-semi2k "$link"
done
.venv/bin/python scripts/compare_prices.py "$results"
