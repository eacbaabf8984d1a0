"""jobs/build-horovod.sh among a Python, a compiler and an MPI that are made up: what it finds, says and keeps.

The real build takes minutes; here `pip wheel` is a few lines of bash.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "jobs" / "build-horovod.sh"

# what the script may call on any machine; everything else has to be found, or missed, on purpose
ORDINARY = (
    "awk basename bash cat chmod cp cut df dirname env grep mkdir mktemp",
    "mv nproc paste readlink realpath rm sed sha256sum sort tail true",
)

PYTHON = """
case "$*" in
  -) cat >/dev/null; exec cat {root}/answers ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  -c*) dirname "$(dirname "$0")" ;;
  "-m pip wheel "*)
    while [ "$1" != -w ]; do shift; done
    mkdir -p "$2"
    . {root}/build
    ;;
  *prove.py*) exec {real} "$@" ;;
esac
"""
ANSWERS = {
    "python": "3.11",
    "abi": "cp311",
    "platform": "cpython-311-x86_64-linux-gnu glibc 2.36",
    "header": "/dev/null",
    "ensurepip": "True",
    "path": "[]",
    "torch": "2.13.0+cpu",
    "git_version": "abc",
    "cuda": "",
    "hip": "",
    "standard": "20",
    "nccl": "",
}
BUILD = 'printf wheel >"$2/horovod-$HOROVOD_LOCAL_VERSION.whl"\n'
OPENMPI = {"OMPI_MAJOR_VERSION": "4", "OMPI_MINOR_VERSION": "1", "OMPI_RELEASE_VERSION": "4", "MPI_VERSION": "3"}


@dataclass
class Machine:
    """A PATH of its own, and what stands on it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=lambda: dict(ANSWERS))

    def program(self, name: str, code: str) -> None:
        path = self.root / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(f'#!/bin/bash\necho "${{0##*/}} $*" >>{self.root}/calls\n{code}\n')
        path.chmod(0o755)

    def compiler(self, version: str = "12.2.0", accepts: str = "true") -> None:
        self.program("c++", f'[ "$1" = --version ] && {{ echo "c++ (Debian) {version}"; echo more; exit; }}\n{accepts}')

    def mpi(self, macros: dict[str, str], place: str = "/opt/mpi") -> None:
        header = "".join(f"#define {name} {value}\n" for name, value in macros.items())
        self.program("mpicxx", f"[ \"$1\" = -show ] && {{ echo g++ -I{place}; exit; }}\ncat <<'H'\n{header}H")

    def horovod(self, mpi: str = "True") -> None:
        """Make a Horovod that shadows one that this Python may have."""
        (self.root / "packages/horovod/__init__.py").touch()
        (self.root / "packages/horovod/torch/__init__.py").write_text(
            f"def mpi_built(): return {mpi}\ndef gloo_built(): return True\ndef nccl_built(): return 0\n"
        )

    def without(self, *programs: str) -> None:
        for name in programs:
            (self.root / "bin" / name).unlink()

    def build_by(self, code: str) -> None:
        (self.root / "build").write_text(code)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        (self.root / "answers").write_text("".join(f"{name}={value}\n" for name, value in self.answers.items()))
        return subprocess.run(
            [self.root / "bin" / "bash", SCRIPT, *arguments],
            cwd=self.root,
            env={
                "PATH": str(self.root / "bin"),
                "HOME": str(self.root / "home"),
                "TMPDIR": str(self.root / "tmp"),
                "CUDA_HOME": str(self.root / "cuda"),
                **self.environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def key(self, *arguments: str) -> str:
        ran = self.run("--check", *arguments)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.removesuffix("\n")

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def cache(self) -> Path:
        return self.root / "home" / ".cache" / "hpctrain" / "horovod"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Make a machine where nothing is missing."""
    for name in ("bin", "tmp", "home"):
        (tmp_path / name).mkdir()
    made = Machine(tmp_path)
    for name in " ".join(ORDINARY).split():
        found = next(Path(folder, name) for folder in ("/usr/bin", "/bin") if Path(folder, name).exists())
        (tmp_path / "bin" / name).symlink_to(found)
    made.program("python3", PYTHON.format(root=tmp_path, real=sys.executable))
    made.program("make", "")
    made.program("cmake", "echo cmake version 3.25.1")
    made.program("df", "printf 'Filesystem 1M Used Available\\ndisk 9000 1 8999\\n'")
    made.compiler()
    made.mpi(OPENMPI)
    made.build_by(BUILD)
    (tmp_path / "packages/torch").mkdir(parents=True)
    (tmp_path / "packages/torch/__init__.py").write_text('__version__ = "2.13.0+cpu"\n')
    (tmp_path / "packages/horovod/torch").mkdir(parents=True)
    made.horovod()
    made.environment["PYTHONPATH"] = str(tmp_path / "packages")
    return made


def report(*items: str) -> str:
    return "build-horovod: missing, each with what to type:\n" + "".join(f"  no {item}\n" for item in items)


def test_everything_that_is_missing_is_said_at_once(machine):
    machine.without("c++", "mpicxx", "make")
    for name in ("torch", "git_version", "cuda", "hip", "standard", "nccl"):
        del machine.answers[name]
    machine.answers |= {"header": "/usr/include/python3.11/Python.h-", "ensurepip": "False"}
    machine.program("df", "printf 'Filesystem 1M Used Available\\ndisk 9000 1 12\\n'")
    ran = machine.run()
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == report(
        "torch in python3\n      python3 -m pip install torch, or --python the one that has it",
        "C++ compiler\n      apt-get install g++, or module load gcc, or CXX=/path/to/g++",
        "MPI compiler (mpicxx)\n      apt-get install openmpi-bin libopenmpi-dev, or module load openmpi,\n"
        "      or python3 -m pip install openmpi; or --without-mpi",
        "make\n      apt-get install make",
        "Python header /usr/include/python3.11/Python.h-\n      apt-get install python3-dev, or --python another one",
        "ensurepip in python3\n      apt-get install python3-venv",
        f"room in {machine.root}/tmp: 12 MB of 1024\n      TMPDIR=/a/larger/folder bash {SCRIPT} ...",
    )
    assert not machine.cache.exists()


def old_python(machine: Machine) -> None:
    machine.answers = {"python": "3.9"}


def no_python(machine: Machine) -> None:
    machine.without("python3")


def rocm(machine: Machine) -> None:
    machine.answers["hip"] = "6.4"


def compiler_that_does_not_run(machine: Machine) -> None:
    machine.environment["CXX"] = "/nowhere/g++ -m64"


def old_compiler(machine: Machine) -> None:
    machine.compiler("7.3.0", '[[ $* != *c++20* ]] || { echo "unrecognized option" >&2; exit 1; }')


def broken_mpi(machine: Machine) -> None:
    machine.program("mpicxx", 'echo "fatal error: mpi.h: No such file or directory"; echo more; exit 1')


def cuda_of_another_release(machine: Machine) -> None:
    machine.answers |= {"torch": "2.13.0+cu130", "cuda": "13.0"}
    cuda(machine, "12.4")


def cuda(machine: Machine, release: str) -> None:
    for name in ("cuda/bin", "cuda/include", "cuda/lib64"):
        (machine.root / name).mkdir(parents=True, exist_ok=True)
    (machine.root / "cuda/include/cuda_runtime.h").touch()
    (machine.root / "cuda/include/nccl.h").write_text(
        "#define NCCL_MAJOR 2\n#define NCCL_MINOR 30\n#define NCCL_PATCH 7\n#define NCCL_SUFFIX x\n"
    )
    (machine.root / "cuda/lib64/libnccl.so.2").touch()
    (machine.root / "cuda/bin/nvcc").unlink(missing_ok=True)
    machine.program("nvcc", f'echo "Cuda compilation tools, release {release}, V{release}.88"')
    (machine.root / "bin/nvcc").rename(machine.root / "cuda/bin/nvcc")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (no_python, "Python: python3 does not run\n      --python /path/to/python3"),
        (old_python, "Python 3.11 or newer: python3 is 3.9\n      --python /path/to/python3.11"),
        (
            rocm,
            "Horovod for ROCm: torch 2.13.0+cpu is built for it\n      --python one whose torch is for CUDA or CPUs",
        ),
        (
            compiler_that_does_not_run,
            """C++ compiler: CXX=/nowhere/g++ -m64 does not run
      apt-get install g++, or module load gcc, or CXX=/path/to/g++""",
        ),
        (
            old_compiler,
            "c++20, which torch needs, in c++ (Debian) 7.3.0\n      module load gcc, or CXX=/path/to/a/newer/g++",
        ),
        (
            broken_mpi,
            """MPI behind {root}/bin/mpicxx: fatal error: mpi.h: No such file or directory
      module load openmpi, or --without-mpi""",
        ),
        (
            cuda_of_another_release,
            """CUDA 13 with nvcc for torch 2.13.0+cu130: {root}/cuda is 12.4
      module load cuda, or CUDA_HOME=/path/to/cuda, or --without-nccl""",
        ),
    ],
)
def test_each_thing_that_is_missing_comes_with_its_cure(machine, spoil: Callable[[Machine], None], expected):
    spoil(machine)
    for arguments in ((), ("--check",)):
        ran = machine.run(*arguments)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr == report(expected.format(root=machine.root))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--into"], "--into needs a value; see --help"),
        (["--with-mpi"], "unknown argument '--with-mpi'; see --help"),
        (
            ["--without-mpi", "--without-gloo"],
            "--without-mpi and --without-gloo: ranks could not meet; drop one of them",
        ),
    ],
)
def test_wrong_arguments_are_named(machine, arguments, message):
    ran = machine.run(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"build-horovod: {message}\n")


def test_help_needs_nothing(machine):
    machine.without("python3", "c++", "mpicxx")
    ran = machine.run("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("bash jobs/build-horovod.sh [--python PYTHON]")


@pytest.mark.parametrize(
    ("macros", "name"),
    [
        (OPENMPI, "openmpi4.1.4"),
        ({"MPICH_VERSION": '"4.0.2"'}, "mpich4.0.2"),
        ({"MPICH_VERSION": '"3.4"', "I_MPI_VERSION": '"2021.11"'}, "intelmpi2021.11"),
        ({"MPICH_VERSION": '"3.2.1"', "MVAPICH2_VERSION": '"2.3.7"'}, "mvapich2.3.7"),
    ],
)
def test_the_key_names_torch_python_and_mpi(machine, macros, name):
    machine.mpi(macros)
    head, _, digest = machine.key().rpartition("-")
    assert head == f"horovod-0.28.1-torch2.13.0+cpu-cp311-{name}-gloo"
    assert len(digest) == 8
    assert machine.key("--without-mpi").startswith("horovod-0.28.1-torch2.13.0+cpu-cp311-gloo-")
    assert machine.key("--without-gloo").startswith(f"horovod-0.28.1-torch2.13.0+cpu-cp311-{name}-")


def test_a_wheel_without_mpi_needs_none(machine):
    machine.without("mpicxx")
    assert "-cp311-gloo-" in machine.key("--without-mpi")


def test_the_key_changes_with_all_that_decides_the_result(machine):
    keys = [machine.key()]
    machine.answers["torch"] = "2.14.0+cpu"
    keys.append(machine.key())
    machine.answers["git_version"] = "def"
    keys.append(machine.key())
    machine.answers["platform"] = "cpython-311-aarch64-linux-gnu glibc 2.36"
    keys.append(machine.key())
    machine.compiler("13.1.0")
    keys.append(machine.key())
    machine.mpi(OPENMPI, place="/opt/another")
    keys.append(machine.key())
    machine.mpi(OPENMPI | {"OMPI_RELEASE_VERSION": "5"})
    keys.append(machine.key())
    machine.environment["CXXFLAGS"] = "-O1"
    keys.append(machine.key())
    machine.environment["HOROVOD_BUILD_ARCH_FLAGS"] = "-mavx2"
    keys.append(machine.key())
    assert len(set(keys)) == len(keys)


def test_the_key_does_not_change_with_the_job_that_asks(machine):
    key = machine.key()
    machine.environment |= {"HOROVOD_RANK": "3", "HOROVOD_WITH_MPI": "0", "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7"}
    machine.program("make", "another")
    assert machine.key() == key


def test_nccl_goes_in_where_torch_has_cuda(machine):
    cuda(machine, "13.0")
    ran = machine.run("--check")
    assert f"NCCL is left out although {machine.root}/cuda is here: torch 2.13.0+cpu has no CUDA\n" in ran.stderr
    machine.answers |= {"torch": "2.13.0+cu130", "cuda": "13.0"}
    with_nccl = machine.key()
    assert with_nccl.startswith("horovod-0.28.1-torch2.13.0+cu130-cp311-openmpi4.1.4-gloo-nccl2.30.7-")
    assert "nccl" not in machine.key("--without-nccl")
    cuda(machine, "13.1")
    assert machine.key() != with_nccl


def test_the_nccl_that_torch_loads_is_preferred(machine):
    cuda(machine, "13.0")
    machine.answers |= {"torch": "2.13.0+cu130", "cuda": "13.0", "nccl": f"{machine.root}/nvidia/nccl"}
    (machine.root / "nvidia/nccl/include").mkdir(parents=True)
    (machine.root / "nvidia/nccl/lib").mkdir()
    (machine.root / "nvidia/nccl/lib/libnccl.so.2").touch()
    (machine.root / "nvidia/nccl/include/nccl.h").write_text(
        "#define NCCL_MAJOR 2\n#define NCCL_MINOR 27\n#define NCCL_PATCH 1\n"
    )
    assert "-nccl2.27.1-" in machine.key()
    machine.environment["NCCL_HOME"] = str(machine.root / "cuda")
    assert "-nccl2.30.7-" in machine.key()


def test_torch_is_looked_up_without_importing_it(machine):
    package = machine.root / "packages/torch"
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "utils").mkdir()
    (package / "utils/cpp_extension.py").write_text("flags = ['-std=c++20', '-std=c++17']\n")
    (package / "version.py").write_text("__version__ = '9.8.7+mine'\ncuda = None\nhip = None\ngit_version = 'abc'\n")
    header = Path(machine.root, "Python.h")
    header.touch()
    # the header of this very Python may not be installed, which is not what is tested here
    (machine.root / "packages/sitecustomize.py").write_text(
        f"import sysconfig\nsysconfig.get_path = lambda name: {str(machine.root)!r}\n"
    )
    ran = machine.run("--check", "--python", sys.executable)
    assert ran.returncode == 0, ran.stderr
    abi = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert ran.stdout.startswith(f"horovod-0.28.1-torch9.8.7+mine-{abi}")
    assert "compiler=c++ (Debian) 12.2.0, c++20\n" in ran.stderr


def test_a_folder_named_torch_is_not_torch(machine):
    del machine.environment["PYTHONPATH"]
    (machine.root / "torch").mkdir()
    (machine.root / "torch/__init__.py").touch()
    (machine.root / "torch/version.py").write_text("__version__ = '1'\n")
    machine.program("bare-python", f'exec {sys.executable} -S "$@"')
    ran = machine.run("--check", "--python", "bare-python")
    assert ran.returncode == 2
    assert "no torch in bare-python\n" in ran.stderr


def test_a_build_fills_the_cache_and_the_next_call_takes_it(machine):
    machine.build_by(
        BUILD + f'"$CXX" -std=gnu++14 -std=c++11 -DX="a b" -std=c++20; "$HOROVOD_CMAKE" . ; env >{machine.root}/env\n'
    )
    machine.environment |= {"HOROVOD_GPU_ALLREDUCE": "MPI", "HOROVOD_BUILD_CUDA_CC_LIST": "90"}
    built = machine.run()
    assert built.returncode == 0, built.stderr
    key = machine.key()
    wheel = (
        machine.cache / key / f"horovod-{key.removeprefix('horovod-0.28.1-').replace('-', '.').replace('+', '.')}.whl"
    )
    assert built.stdout == f"{wheel}\n"
    assert wheel.read_text() == "wheel"
    against = (wheel.parent / "built-against.txt").read_text()
    assert "torch=2.13.0+cpu abc\n" in against
    assert "mpi=openmpi4.1.4: g++ -I/opt/mpi\n" in against
    assert list(machine.cache.iterdir()) == [wheel.parent]
    assert list((machine.root / "tmp").iterdir()) == []

    assert "c++ -std=c++20 -std=c++20 -DX=a b -std=c++20" in machine.calls
    assert f"cmake -DCMAKE_POLICY_VERSION_MINIMUM=3.5 -DMPI_CXX_COMPILER={machine.root}/bin/mpicxx ." in machine.calls
    settings = (machine.root / "env").read_text().splitlines()
    for setting in (
        "HOROVOD_WITH_MPI=1",
        "HOROVOD_WITH_GLOO=1",
        "HOROVOD_WITHOUT_MPI=0",
        "LDFLAGS=-s ",
        "HOROVOD_BUILD_CUDA_CC_LIST=90",
    ):
        assert setting in settings
    assert not any("GPU_ALLREDUCE" in setting for setting in settings)  # another job's wish

    (machine.root / "calls").unlink()
    machine.without("make")  # only a build needs it
    again = machine.run("--into", "here")
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert again.stdout == f"{machine.root}/here/{wheel.name}\n"
    assert [path.name for path in (machine.root / "here").iterdir()] == [wheel.name]
    assert not any("-m" in call for call in machine.calls)


def test_two_kinds_of_wheels_stand_side_by_side(machine):
    machine.horovod(mpi="'mpi' in __import__('sys').argv")
    both, gloo = machine.run(), machine.run("--without-mpi")
    assert both.returncode == gloo.returncode == 0, both.stderr + gloo.stderr
    assert both.stdout != gloo.stdout
    assert len(list(machine.cache.iterdir())) == 2
    assert machine.run().stdout == both.stdout


def test_a_failed_build_shows_its_log_and_leaves_nothing_in_the_cache(machine):
    machine.build_by("echo 'c++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1\n")
    ran = machine.run()
    assert (ran.returncode, ran.stdout) == (1, "")
    (log,) = (machine.root / "tmp").iterdir()
    assert f"failed; the whole log is {log}, its first errors and its end are:\nc++: fatal error: Killed" in ran.stderr
    assert ran.stderr.endswith(f"build-horovod: memory ran out: MAKEFLAGS=-j1 bash {SCRIPT} ...\n")
    assert "Killed signal" in log.read_text()
    assert list(machine.cache.iterdir()) == []


def test_a_wheel_that_is_not_what_was_asked_for_is_refused(machine):
    machine.horovod(mpi="False")
    ran = machine.run()
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "asked for ['2.13.0+cpu', 'mpi', 'gloo'], built ['2.13.0+cpu', 'gloo']" in ran.stderr
    assert list(machine.cache.iterdir()) == []


def test_where_another_build_came_first_its_wheel_is_taken(machine):
    entry = machine.cache / machine.key()
    machine.build_by(BUILD + f"mkdir {entry}; echo first >{entry}/horovod-first.whl; echo >{entry}/built-against.txt\n")
    ran = machine.run()
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{entry}/horovod-first.whl\n"
    assert list(machine.cache.iterdir()) == [entry]
    assert {path.name for path in entry.iterdir()} == {"built-against.txt", "horovod-first.whl"}
