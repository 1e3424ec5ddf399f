#!/bin/sh
# Make .venv, or bring it up to date. `make` calls this; you need not.
#   sh tools/setup.sh          what a learner needs
#   sh tools/setup.sh dev      after that: an extra of pyproject.toml as well
# PYTHON names the Python to use; without it we look for one.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd -P) # as make sees it, whatever links lead here
extra="${1:-}"
venv_python=.venv/bin/python

fits() { # is $1 a Python that can make our .venv?
    "$1" -c 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.13 python3.12 python3.11 python3
    fi
    for candidate; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "Cria needs Python 3.11, 3.12 or 3.13 with its venv module, and" \
        "${PYTHON:-your PATH} has none; install one, or name yours:" \
        "make PYTHON=/path/to/python3" >&2
    exit 1
}

install() { "$venv_python" -m pip install --disable-pip-version-check "$@"; }

# An interrupted set-up leaves .unfinished behind. We then begin anew, because pip may
# take a package that is half there for complete. A moved folder or a Python that is
# gone breaks a .venv as well.
if [ -e .venv/.unfinished ]; then
    echo "An earlier set-up was interrupted: beginning anew."
    rm -rf .venv
elif [ -e .venv/.ready ] && [ "$(cat .venv/.ready)" != "$here" ]; then
    echo "This folder was moved since .venv was made: beginning anew."
    rm -rf .venv
elif [ -d .venv ] && ! fits "$venv_python"; then
    echo "The Python of .venv is gone or does not fit: beginning anew."
    rm -rf .venv
fi

if [ ! -d .venv ]; then
    python=$(find_python)
    echo "Making .venv with $python (once; about a minute, 1.4 GB) ..."
    mkdir .venv
    touch .venv/.unfinished
    "$python" -m venv .venv
elif [ -n "$extra" ]; then
    echo "Adding what '$extra' needs to .venv ..."
else
    echo "Bringing .venv up to date ..."
fi

touch .venv/.unfinished
if [ -z "$extra" ]; then
    install -r requirements.txt -c constraints.txt
    install --quiet --no-deps --no-build-isolation -e .
    rm -f .venv/.ready*
    echo "$here" > .venv/.ready
else
    install --no-build-isolation -e ".[$extra]" -c constraints.txt
    touch ".venv/.ready-$extra"
fi
rm .venv/.unfinished
echo "Set-up complete."
