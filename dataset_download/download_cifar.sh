#!/usr/bin/env bash
# Download CIFAR-10 and CIFAR-100 (163 MiB and 161 MiB):
#
#     bash dataset_download/download_cifar.sh [DEST=./data] [cifar10|cifar100|all]
#
# makes DEST/cifar-10-batches-py and DEST/cifar-100-python. It may be stopped at any time; run it again to continue.
# For a mirror set CIFAR10_URL and CIFAR100_URL, and also CIFAR10_MD5 and CIFAR100_MD5 if its archives differ.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/fetch.sh"

unpack_tar() { tar -xzf "$1" -C "$2" --no-same-owner; }

get_cifar10() {
    install_archive \
        "${CIFAR10_URL:-https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz}" \
        "${CIFAR10_MD5:-c58f30108f718f92721af3b95e74349a}" \
        "$dest/cifar-10-python.tar.gz" "$dest/cifar-10-batches-py" unpack_tar
}

get_cifar100() {
    install_archive \
        "${CIFAR100_URL:-https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz}" \
        "${CIFAR100_MD5:-eb9058c3a382ffc7106e4002c42a8d85}" \
        "$dest/cifar-100-python.tar.gz" "$dest/cifar-100-python" unpack_tar
}

[[ $# -le 2 ]] || die "usage: bash $0 [DEST] [cifar10|cifar100|all]"
dest=${1:-./data}
which=${2:-all}
[[ $which == cifar10 || $which == cifar100 || $which == all ]] ||
    die "invalid set '$which': expected cifar10, cifar100 or all"
need_tools curl md5sum flock tar
mkdir -p "$dest"
lock_folder "$dest"
[[ $which == cifar100 ]] || get_cifar10
[[ $which == cifar10 ]] || get_cifar100
