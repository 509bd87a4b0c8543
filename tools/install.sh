#!/bin/sh
# Make the virtual environment $1 and install bridge in it, with the extras $2 (e.g. "[test]").
#
# Everything but torch is the same everywhere: constraints.txt names each version. Torch comes
# in builds. Without an NVIDIA GPU we ask for the build named "+cpu", which PyPI does not carry,
# so that a CUDA build (gigabytes of nvidia-* packages) cannot slip in: first from wherever pip
# is configured to look, then from PyTorch's own CPU index. BRIDGE_TORCH=cpu or cuda overrides.
set -eu

venv=${1:?usage: tools/install.sh VENV [EXTRAS]}
extras=${2:-}
python=${PYTHON:-python3}
cpu_index=https://download.pytorch.org/whl/cpu
constraints=constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "bridge: $*" >&2; }
die() { say "$*"; exit 1; }

cd "$(dirname "$0")/.."

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "Python 3.11 or newer is needed; '$python' is $("$python" --version 2>&1 || true)." \
        "Name another one: make PYTHON=python3.12 ..."

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian ships these modules apart from python3.
    package=python3-venv
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $package with apt-get"
        { apt-get update -qq && apt-get install -y -qq "$package"; } >/dev/null </dev/null
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "'$python' still has no venv module; install the one that belongs to it."
    else
        die "'$python' has no venv module. On Debian or Ubuntu: sudo apt-get install $package"
    fi
fi

# pip comes last: an environment without it was cut off in the making, and is finished now.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    { say "making $venv"; "$python" -m venv "$venv"; }
pip() { "$venv/bin/python" -m pip "$@" </dev/null; }

torch=$(sed -n 's/^torch==//p' $constraints)
build=${BRIDGE_TORCH:-}
if [ -z "$build" ]; then
    if nvidia-smi >/dev/null 2>&1; then build=cuda; else build=cpu; fi
fi

installed=$("$venv/bin/python" -c \
    'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)
case "$build/$(uname -s)/$installed" in
    cpu/Linux/"$torch+cpu") ;;
    cpu/Linux/*)
        say "installing torch $torch, CPU build (about 200 MB)"
        pip install --quiet -c $constraints "torch==$torch+cpu" 2>/dev/null ||
            pip install --quiet -c $constraints --retries 2 \
                --extra-index-url "$cpu_index" "torch==$torch+cpu" ||
            die "no CPU build of torch $torch was found, neither where pip is configured to look" \
                "nor at $cpu_index. Put its wheel in a folder and set PIP_FIND_LINKS to it," \
                "or run with BRIDGE_TORCH=cuda to take the CUDA build."
        ;;
    *)  # CUDA machines, and systems whose only build on PyPI is the plain one.
        say "installing torch $torch"
        # Without the second half pip is content with a CPU build that is installed already.
        pip install --quiet -c $constraints "torch==$torch,!=$torch+cpu" ||
            die "torch $torch could not be installed, see above. BRIDGE_TORCH=cpu takes the" \
                "CPU build."
        ;;
esac

say "installing bridge$extras and its pinned dependencies"
# setuptools is there already, as a dependency of torch, at the pinned version.
pip install --quiet --no-build-isolation -c $constraints -e ".$extras"
say "installed in $venv"
