#!/usr/bin/env bash
# ResNet-20 on CIFAR-100 at a tenth of its ReLUs, on a scale that suits a CPU: one baseline, then three searches that
# replace dropped ReLUs by the identity, by linear functions, and by quadratics. About an hour on two cores. Run it again
# to resume what was killed. DATA (./data) holds CIFAR-100, OUT (.) is where the run folders go, and rows go to
# results/cifar100_resnet20_cpu.csv.
set -euo pipefail
source "$(dirname "$0")/here.sh"
bash scripts/setup_env.sh requirements.txt
out=${OUT:-.}
common=(--arch resnet20 --dataset cifar100 --data_path "${DATA:-./data}" --gpu cpu --precision bf16 --batch_size 128
        --print_freq 100 --out_dir "$out" --ext seed0 --resume auto)
baseline=$out/train_cifar/resnet20__cifar100/cosine_baseline_ReLUs0lr0.1ep12_seed0
.venv/bin/python train_baseline.py "${common[@]}" --epochs 12

search=("${common[@]}" --recipe reference --pretrained_path "$baseline/last.pth.tar"
        --distil --teacher_path "$baseline/last.pth.tar" --ReLU_count 18.8 --mask_epochs 6 --epochs 3
        --w_mask_lr 0.005 --budget_schedule linear --anneal_fraction 0.6
        --warmup_epochs 1 --lr_update step --clip_scores true)
.venv/bin/python train_autorep.py "${search[@]}" --act_type ReLU_masked_relay
.venv/bin/python train_autorep.py "${search[@]}" --act_type ReLU_masked_dapa_relay --dapa_fit recorded --degree 1
.venv/bin/python train_autorep.py "${search[@]}" --act_type ReLU_masked_dapa_relay --dapa_fit recorded --degree 2

leaf=resnet20_resnet20_cifar100_relay_0.003/cosine_ReLUs18.8wm_lr0.005mep6_seed0
.venv/bin/python -m autorep.results results/cifar100_resnet20_cpu.csv "$baseline" \
    "$out/train_cifar_distil_relay/$leaf" "$out/train_cifar_dapa1_distil_relay/$leaf" \
    "$out/train_cifar_dapa2_distil_relay/$leaf"
