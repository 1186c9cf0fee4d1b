#!/usr/bin/env bash
# Compare --recipe fast with the published settings of a baseline, for the same number of epochs and images per step.
# By default ResNet-20 on CIFAR-100, 10 epochs, seed 0: about 20 minutes on two cores with fast bf16. Rows go to
# results/fast_recipe.csv. Run it again to resume what was killed.
#
# ARCH, DATASET, DATA: network, data set and its folder. EPOCHS, SEEDS: lists, such as "10 20". OUT: where the run
# folders go.
set -euo pipefail
source "$(dirname "$0")/here.sh"
bash scripts/setup_env.sh requirements.txt
arch=${ARCH:-resnet20} dataset=${DATASET:-cifar100} out=${OUT:-quickstart_runs/fast_recipe}
for recipe in reference fast; do
    folders=()
    for seed in ${SEEDS:-0}; do
        for epochs in ${EPOCHS:-10}; do
            command=(train_baseline.py --arch "$arch" --dataset "$dataset" --data_path "${DATA:-./data}" --gpu cpu
                     --precision bf16 --recipe "$recipe" --epochs "$epochs" --batch_size 128 --validation_fraction 0
                     --print_freq 100 --seed "$seed" --ext "$recipe$seed" --out_dir "$out")
            folders+=("$(.venv/bin/python "${command[@]}" --dry_run | sed -n 's/^run folder: //p')")
            .venv/bin/python "${command[@]}" --resume auto
        done
    done
    .venv/bin/python -m autorep.results results/fast_recipe.csv "${folders[@]}" --variant "$recipe"
done
