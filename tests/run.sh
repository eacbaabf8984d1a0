#!/bin/bash
# The test command: sets up all it needs on a fresh Debian or Ubuntu machine with Python, then runs every check.
#
#     bash tests/run.sh            everything
#     bash tests/run.sh quick      lint, types, import rules and the tests that start no ranks and no Slurm
#
# With CI=true a missing component is a failure, elsewhere its tests are skipped and listed with what to install.
# HPCTRAIN_DATA is the folder with mnist/; VENV (default .venv) is where the virtual environment lies.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-all}
venv=${VENV:-.venv}
case $mode in all | quick) ;; *) echo "usage: bash tests/run.sh [quick]" >&2; exit 2 ;; esac

say() { printf '\n=== %s\n' "$*"; }

packages=(slurm-wlm munge iproute2 slurmdbd slurm-wlm-mysql-plugin mariadb-server shellcheck python3-venv
  openmpi-bin libopenmpi-dev libpmix-dev g++ make cmake python3-dev strace)
needs_packages() {
  local command
  for command in slurmctld slurmd munged ip slurmdbd mariadbd shellcheck mpirun mpicxx g++ make cmake strace; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || return 0
  done
  ! compgen -G '/usr/lib/*/libpmix.so' >/dev/null # slurmd loads it by this name
}
if [ "$mode" = all ] && needs_packages; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # the daemons are started by the tests, with a configuration of their own: never by the package's scripts
    if [ ! -e /usr/sbin/policy-rc.d ]; then printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d; fi
    apt-get -qq -o DPkg::Lock::Timeout=600 update
    apt-get -qq -y -o DPkg::Lock::Timeout=600 install --no-install-recommends "${packages[@]}" >/dev/null
  else
    echo "not root, or no apt: the Slurm tests need: apt-get install --no-install-recommends ${packages[*]}" >&2
  fi
fi

say "virtual environment $venv"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c tests/constraints.txt -e '.[dev,mpi]'
venv=$(realpath "$venv")
PATH=$venv/bin:$PATH
export PATH

say "lint, types, import rules, generated documents"
ruff check .
ruff format --check .
mypy
lint-imports
python -m hpctrain.config.reference --check
scripts=(jobs/*.sh tests/run.sh .ci/run)
bash -n "${scripts[@]}"
if command -v shellcheck >/dev/null; then shellcheck "${scripts[@]}"; else echo "shellcheck is not installed: scripts not checked"; fi

if [ "$mode" = quick ]; then
  say "quick tests"
  exec python -m pytest -m "not slurm and not torch and not gpu"
fi

say "torchvision and timm"
# Without what they depend on: all that they need to build models is there, and pip is to leave torch alone.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -c tests/constraints.txt torchvision timm

say "Horovod, with MPI and Gloo, and with Gloo alone"
# Its wheels are built once for each torch, Python and MPI, and kept in the cache of build-horovod.sh.
if both=$(bash jobs/build-horovod.sh --python "$venv/bin/python") &&
  gloo=$(bash jobs/build-horovod.sh --python "$venv/bin/python" --without-mpi); then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c tests/constraints.txt "$both"
  export HPCTRAIN_HOROVOD_GLOO=$venv/horovod-gloo
  rm -rf "$HPCTRAIN_HOROVOD_GLOO"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$HPCTRAIN_HOROVOD_GLOO" "$gloo"
elif [ "${CI:-}" = true ]; then
  exit 1
fi

say "the wheel, with nothing but what the login node needs"
bash tests/wheel.sh

status=0
say "quick tests"
python -m pytest -m "not slurm and not torch and not gpu" || status=$?
say "all other tests"
python -m pytest -m "slurm or torch or gpu" --durations=40 || status=$?

cat <<'NOTE'

Not tested here: real GPUs and NCCL (tests/gpu runs where there is one), more than one physical machine, pyxis and
apptainer themselves (their command lines are), other Slurm releases than the distribution's, Python other than the one
of the virtual environment.
NOTE
exit "$status"
