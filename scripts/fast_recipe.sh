#!/usr/bin/env bash
# Compare --recipe fast (100 epochs) with the published baseline (400): ResNet-8 on the handwritten digits of
# scikit-learn, three seeds each, about five minutes on two cores. OUT is where the run folders go. Rows go to
# results/fast_recipe_digits.csv.
set -euo pipefail
source "$(dirname "$0")/here.sh"
bash scripts/setup_env.sh requirements.txt
out=${OUT:-quickstart_runs/fast_recipe}
folders=()
for seed in 0 1 2; do
    for recipe in reference fast; do
        command=(train_baseline.py --arch resnet8 --dataset digits --gpu cpu --recipe "$recipe" --seed "$seed"
                 --ext "$recipe$seed" --out_dir "$out" --print_freq 1000)
        folders+=("$(.venv/bin/python "${command[@]}" --dry_run | sed -n 's/^run folder: //p')")
        .venv/bin/python "${command[@]}" --resume auto
    done
done
.venv/bin/python -m autorep.results results/fast_recipe_digits.csv "${folders[@]}"
