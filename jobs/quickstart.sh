#!/bin/bash
# From a fresh machine to a trained model: a virtual environment in .venv, then two ranks on this machine that learn to
# read handwritten digits. Needs Python 3.11 or newer and the package index; takes some seconds once that is there.
#
#     bash jobs/quickstart.sh
#
# PYTHON=/path/to/python chooses the interpreter, VENV=DIR the place of the virtual environment.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${VENV:-.venv}

"$python" - <<'CHECK' || exit 2
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; PYTHON=/path/to/python3.11 bash jobs/quickstart.sh")
CHECK
if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv" || {
    echo "no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 2
  }
fi
echo "installing hpctrain and its packages into $venv ..." >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c tests/constraints.txt -e .
echo "training on handwritten digits with two ranks:" >&2
"$venv/bin/hpctrain" submit configs/quickstart.yaml --scheduler local --follow
echo "type next: source $venv/bin/activate; hpctrain status" >&2
