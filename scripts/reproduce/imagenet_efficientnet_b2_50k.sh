#!/usr/bin/env bash
# EfficientNet-B2 on ImageNet with 50K of its 8,804,162 activations, 176.1 times fewer: AutoReP.
# time:     10 to 25 hours on one H100 (not measured: estimated from FLOPs at 3 to 8 TFLOP/s, since memory bounds
#           depthwise layers) and 16 cores that decode 1,000 images/s or more: give --workers 16
# memory:   22 GB of GPU memory (not measured: estimated as what autograd saves for a batch, plus a third)
# accuracy: published 75.55 % (AutoReP, at 176.1 times fewer ReLUs: 50K)
#           not reproduced yet
# usage:    GPU=0 DATA=./data OUT=. bash scripts/reproduce/imagenet_efficientnet_b2_50k.sh
#           MINUTES=8: in slices, run it again on exit code 75; REDUCED=1: a smoke run on the CPU
# Teacher and start are torchvision's own weights, downloaded on first use. Their activations are SiLU: a kept pixel
# computes ReLU instead. No published settings are known; these are Tiny-ImageNet's, for 30 epochs.
exec bash "$(dirname "$0")/_row.sh" torchvision:efficientnet_b2 imagenet 50 30 \
    --w_lr 1e-4 --enable_lookahead --lamda 240 -- --kept relu --sigmoid hard "$@"
