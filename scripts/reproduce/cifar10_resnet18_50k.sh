#!/usr/bin/env bash
# ResNet-18 on CIFAR-10 with 50K of its 491,520 ReLUs: a teacher, then AutoReP.
# time:     45 to 90 minutes on one H100 (not measured: estimated from FLOPs at 25 to 50 TFLOP/s in fp32 with TF32)
# memory:   3 GB of GPU memory (not measured: estimated as what autograd saves for a batch, plus a third)
# accuracy: published 94.02 % (ReLUPruner, identity)
#           not reproduced yet
# usage:    GPU=0 DATA=./data OUT=. bash scripts/reproduce/cifar10_resnet18_50k.sh
#           MINUTES=8: in slices, run it again on exit code 75; REDUCED=1: a smoke run on the CPU
exec bash "$(dirname "$0")/_row.sh" resnet18_in cifar10 50 200 --lamda 140 -- "$@"
