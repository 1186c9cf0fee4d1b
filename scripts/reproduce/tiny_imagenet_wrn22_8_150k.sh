#!/usr/bin/env bash
# WRN-22-8 on Tiny-ImageNet with 150K of its 5,439,488 ReLUs: a teacher, then AutoReP.
# time:     16 to 31 hours on one H100 (not measured: estimated from FLOPs at 25 to 50 TFLOP/s in fp32 with TF32)
# memory:   15 GB of GPU memory (not measured: estimated as what autograd saves for a batch, plus a third)
# accuracy: no published figure known
#           not reproduced yet
# usage:    GPU=0 DATA=./data OUT=. bash scripts/reproduce/tiny_imagenet_wrn22_8_150k.sh
#           MINUTES=8: in slices, run it again on exit code 75; REDUCED=1: a smoke run on the CPU
exec bash "$(dirname "$0")/_row.sh" wide_resnet_22_8 tiny_imagenet 150 80 \
    --w_lr 1e-4 --enable_lookahead --lamda 240 -- "$@"
