#!/usr/bin/env bash
# Download Tiny-ImageNet (236 MiB, 120,000 files):
#
#     bash dataset_download/download_tinyimagenet.sh [DEST=./data]
#
# makes DEST/tiny-imagenet-200. It may be stopped at any time; run it again to continue. For a mirror set
# TINY_IMAGENET_URL, and also TINY_IMAGENET_MD5 if its archive differs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/fetch.sh"

unpack_zip() { python3 -m zipfile -e "$1" "$2"; }

[[ $# -le 1 ]] || die "usage: bash $0 [DEST]"
dest=${1:-./data}
need_tools curl md5sum flock python3
mkdir -p "$dest"
lock_folder "$dest"
install_archive \
    "${TINY_IMAGENET_URL:-http://cs231n.stanford.edu/tiny-imagenet-200.zip}" \
    "${TINY_IMAGENET_MD5:-90528d7ca1a48142e341f4ef8d21d0de}" \
    "$dest/tiny-imagenet-200.zip" "$dest/tiny-imagenet-200" unpack_zip
