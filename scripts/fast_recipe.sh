#!/usr/bin/env bash
# The fast recipe of a baseline (100 epochs) beside the published one (400): ResNet-8 on the handwritten digits that come
# with scikit-learn, three seeds of each, to results/fast_recipe_digits.csv. Five minutes on two cores. OUT takes the runs.
set -euo pipefail
cd "$(dirname "$0")/.."
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
