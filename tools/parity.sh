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
pip install --quiet -c constraints.txt lark==1.3.1 einops==0.8.2 scikit-learn==1.9.1

# The webui's own transformers, whose tokenizer cleans texts.
"${PYTHON:-python3}" -m venv "$venv/webui"
"$venv/webui/bin/python" -m pip install --quiet \
    transformers==4.30.2 "huggingface_hub<0.20" ftfy==6.3.1 </dev/null
