#!/usr/bin/env bash
# WRN-22-8 on CIFAR-100 with 150K of its 1,359,872 ReLUs: a teacher, then AutoReP.
# time:     3 to 6 hours on one H100 (not measured: estimated from FLOPs at 25 to 50 TFLOP/s in fp32 with TF32)
# memory:   5 GB of GPU memory (not measured: estimated as what autograd saves for a batch, plus a third)
# accuracy: published 77.38 % (AutoReP, linear), 78.61 % (ReLUPruner, identity)
#           not reproduced yet
# usage:    GPU=0 DATA=./data OUT=. bash scripts/reproduce/cifar100_wrn22_8_150k.sh
#           MINUTES=8: in slices, run it again on exit code 75; REDUCED=1: a smoke run on the CPU
exec bash "$(dirname "$0")/_row.sh" wide_resnet_22_8 cifar100 150 200 --lamda 80 -- "$@"
