#!/usr/bin/env bash
# From nothing to a network with almost no ReLUs: real handwritten digits, a small ResNet, minutes on two CPU cores.
# Run it again to resume what was killed; finished runs are reused. OUT (quickstart_runs) is where the run folders go.
set -euo pipefail
source "$(dirname "$0")/here.sh"
out=${OUT:-quickstart_runs}
bash scripts/setup_env.sh requirements.txt
# Digits of 8x8 pixels do not keep a second thread busy, and where jobs share cores a waiting thread slows both down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

common=(--arch resnet8 --dataset digits --gpu cpu --batch_size 64 --out_dir "$out" --ext quickstart --resume auto)
baseline="$out/train_cifar/resnet8__digits/cosine_baseline_ReLUs0lr0.1ep30_quickstart"
autorep="$out/train_cifar_dapa2_distil_relay/resnet8_resnet8_digits_relay_0.003/cosine_ReLUs0.23wm_lr0.02mep40_quickstart"

.venv/bin/python train_baseline.py "${common[@]}" --epochs 30
.venv/bin/python train_autorep.py "${common[@]}" --act_type ReLU_masked_dapa_relay --degree 2 --threshold 0.003 \
    --ReLU_count 0.23 --mask_epochs 40 --epochs 20 --w_lr 0.002 --w_mask_lr 0.02 --refit_every 20 --refit_until 100 \
    --recipe reference --budget_schedule linear --dapa_fit recorded \
    --pretrained_path "$baseline/last.pth.tar" --distil --teacher_path "$baseline/last.pth.tar"
.venv/bin/python scripts/compare_runs.py "$baseline" "$autorep"
