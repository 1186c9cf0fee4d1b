#!/usr/bin/env bash
# ResNet-18 on Tiny-ImageNet with 55K of its 1,966,080 ReLUs: a teacher, then AutoReP.
# time:     4 to 7 hours on one H100 (not measured: estimated from FLOPs at 25 to 50 TFLOP/s in fp32 with TF32)
# memory:   7 GB of GPU memory (not measured: estimated as what autograd saves for a batch, plus a third)
# accuracy: published 63.69 % (AutoReP, quadratic), 56.69 % (linear), 56.84 % (ReLUPruner, identity)
#           not reproduced yet
# usage:    GPU=0 DATA=./data OUT=. bash scripts/reproduce/tiny_imagenet_resnet18_55k.sh
#           MINUTES=8: in slices, run it again on exit code 75; REDUCED=1: a smoke run on the CPU
exec bash "$(dirname "$0")/_row.sh" resnet18_in tiny_imagenet 55 80 \
    --w_lr 1e-4 --enable_lookahead --lamda 240 -- "$@"
