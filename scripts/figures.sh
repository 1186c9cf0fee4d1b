#!/usr/bin/env bash
# Draw the figures of README and docs/ into docs/figures, from results/, from two runs of
# studies/cifar10_resnet8_ablations.toml and from one of studies/cifar10_resnet20_board.toml. OUT (.) is where the run
# folders of these studies are, DATA (./data) holds CIFAR-10. overview: draw that one alone.
set -euo pipefail
source "$(dirname "$0")/here.sh"
python=${PYTHON:-.venv/bin/python}
table=results/cifar10_resnet8_ablations.csv report=results/report docs=docs/figures
leaf=cosine_ReLUs2.212wm_lr0.015mep2
hysteresis=${OUT:-.}/train_cifar_dapa2_distil_relay/resnet8_resnet8_cifar10_relay_0.003/${leaf}_best_seed0
plain=${OUT:-.}/train_cifar_dapa2_distil/resnet8_resnet8_cifar10/${leaf}_threshold_0_seed0

searches=${OUT:-.}/train_cifar_dapa2_distil_relay/resnet20_resnet20_cifar10_relay_0.003
"$python" -m autorep.report.overview results/cifar10_resnet20_board.csv \
    "$searches/cosine_spu-semi2k-wan_0.5_wm_lr0.001mep5_price_wan_seed1" "$docs/overview.png"
[ "${1:-}" != overview ] || exit 0
"$python" -m autorep.report "$table" --runs "$hysteresis" "$plain" --data_path "${DATA:-./data}" --out "$report"
for name in accuracy variants cost_semi2k cost_cheetah; do
    cp "$report/figures/${name}_cifar10_resnet8_ablations_cifar10_resnet8.png" "$docs/$name.png"
done
cp "$report/figures/run1_masks_mean.png" "$docs/masks.png"
cp "$report/figures/run1_flips.png" "$docs/flips_hysteresis.png"
cp "$report/figures/run2_flips.png" "$docs/flips_plain_gate.png"
