#!/usr/bin/env bash
# ResNet-18 on CIFAR-100 with 12.9K of its 491,520 ReLUs in one short sitting, in bf16: a teacher by --recipe fast, then
# 60 epochs of search and 20 of fine-tuning.
# time:     the search 12 minutes on one H200 (estimated from a measured step, 5,200 images/s; never run as a whole)
# memory:   3 GB of GPU memory (not measured: what autograd saves for the teacher's batch of 512, plus a third)
# accuracy: published 74.92 % with 400 and 200 epochs (AutoReP, quadratic); not reproduced yet
# usage:    GPU=0 DATA=./data OUT=. bash scripts/reproduce_cifar100_resnet18.sh
#           MINUTES=8: in slices, run it again on exit code 75; REDUCED=1: a smoke run on the CPU
exec env BASELINE="${BASELINE:-fast}" bash "$(dirname "$0")/reproduce/_row.sh" resnet18_in cifar100 12.9 60 \
    --lamda 140 --epochs 20 -- --precision bf16 "$@"
