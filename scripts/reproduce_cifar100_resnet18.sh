#!/usr/bin/env bash
# ResNet-18 on CIFAR-100 with 12.9K of its 491,520 ReLUs in one short sitting: a teacher by the fast recipe, a search of
# 60 epochs and 20 of fine-tuning, in bf16.
# time:     the search 12 minutes on one H200 (from its measured step, 5,200 images/s; not run as a whole)
# memory:   3 GB of GPU memory (not measured: what autograd saves for a batch of the teacher's 512, and a third more)
# accuracy: published 74.92 % with 400 and 200 epochs (AutoReP, quadratic); ours is not measured yet
# usage:    GPU=0 DATA=./data OUT=. bash scripts/reproduce_cifar100_resnet18.sh
#           MINUTES=8: in slices, exit code 75 means run it again; REDUCED=1: a smoke run on the CPU
exec env BASELINE="${BASELINE:-fast}" bash "$(dirname "$0")/reproduce/_row.sh" resnet18_in cifar100 12.9 60 \
    --lamda 140 --epochs 20 -- --precision bf16 "$@"
