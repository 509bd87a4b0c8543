#!/bin/sh
# Make the environment $1 of the parity tests: bridge's own, and the packages of its peers.
#
# torchvision, open_clip and timm go in without their dependencies: theirs would replace the CPU
# build of torch. tests/parity/conftest.py declares the operators that torchvision misses.
set -eu

venv=${1:?usage: tools/parity.sh VENV}
cd "$(dirname "$0")/.."

tools/install.sh "$venv" "[test]"
pip() { "$venv/bin/python" -m pip "$@" </dev/null; }
pip install --quiet --no-deps torchvision==0.28.0 open_clip_torch==3.3.0 timm==1.0.31
pip install --quiet -c constraints.txt \
    sentencepiece==0.2.3 protobuf==7.36.2 ftfy==6.3.1 lark==1.3.1 einops==0.8.2
