#!/usr/bin/env bash
# Draw the figures of README and docs/ into docs/figures, from results/ and from two runs of
# studies/cifar10_resnet8_ablations.toml. OUT (.) is where that study's run folders are, DATA (./data) holds CIFAR-10.
set -euo pipefail
source "$(dirname "$0")/here.sh"
python=${PYTHON:-.venv/bin/python}
table=results/cifar10_resnet8_ablations.csv report=results/report docs=docs/figures
leaf=cosine_ReLUs2.212wm_lr0.015mep2
hysteresis=${OUT:-.}/train_cifar_dapa2_distil_relay/resnet8_resnet8_cifar10_relay_0.003/${leaf}_best_seed0
plain=${OUT:-.}/train_cifar_dapa2_distil/resnet8_resnet8_cifar10/${leaf}_threshold_0_seed0

"$python" -m autorep.report "$table" --runs "$hysteresis" "$plain" --data_path "${DATA:-./data}" --out "$report"
"$python" -m autorep.report.overview "$table" "$hysteresis" "$docs/overview.png"
for name in accuracy variants cost_semi2k cost_cheetah; do
    cp "$report/figures/${name}_cifar10_resnet8_ablations_cifar10_resnet8.png" "$docs/$name.png"
done
cp "$report/figures/run1_masks_mean.png" "$docs/masks.png"
cp "$report/figures/run1_flips.png" "$docs/flips_hysteresis.png"
cp "$report/figures/run2_flips.png" "$docs/flips_plain_gate.png"
