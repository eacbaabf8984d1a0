#!/bin/bash
# Builds the wheel, installs it beside the launcher's three dependencies alone, and uses it: what is missing in the
# wheel, or reaches for torch on a login node, shows here.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$work" .
python -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'click>=8.1' 'PyYAML>=6.0.1' 'msgspec>=0.19'
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$work"/hpctrain-*.whl
cp configs/quickstart.yaml "$work"
cd "$work"
venv/bin/hpctrain --version
venv/bin/hpctrain check quickstart.yaml --scheduler local
venv/bin/hpctrain submit quickstart.yaml --dry-run | bash -n
venv/bin/hpctrain submit quickstart.yaml dist.strategy=horovod --dry-run | bash -n
venv/bin/python -c 'import sys, hpctrain.cli; assert "numpy" not in sys.modules'
echo "the wheel is whole"
