#!/usr/bin/env bash
# The published baseline: WRN-22-8 on Tiny-ImageNet, 400 epochs, in the background with nohup.
# GPU (0) is the index of the GPU or cpu, DATA (./data) is the folder that holds tiny-imagenet-200. Further arguments go
# to train_baseline.py, such as --resume auto --max_minutes 60.
set -euo pipefail
source "$(dirname "$0")/in_background.sh"
need_file "${DATA:-./data}" "set DATA, or bash dataset_download/download_tinyimagenet.sh ${DATA:-./data}"
in_background baseline_wide_resnet_22_8__tiny_imagenet.log train_baseline.py \
    --arch wide_resnet_22_8 --dataset tiny_imagenet --data_path "${DATA:-./data}" --gpu "${GPU:-0}" \
    --act_type nn.ReLU --batch_size 256 --epochs 400 --optim cosine --w_lr 0.1 --w_lr_min 1e-5 --w_momentum 0.9 \
    --w_weight_decay 5e-4 --ext baseline "$@"
