#!/bin/sh
# Prints the path of an interpreter that has this project installed with the extras EXTRAS.
#
#   sh tools/environment.sh EXTRAS [TORCH_REQUIREMENT]
#
# It takes $VIRTUAL_ENV; else ./.venv or the first python that imports torch and pytest and may be
# installed into; else it makes ./.venv. torch is installed only where none is found, and is never
# replaced. What it does goes to standard error, and nothing is done twice for the same sources.
set -eu

extras=${1:?the extras to install, such as test}
torch=${2:-torch==2.13.0}
cd "$(dirname "$0")/.."
root=$(pwd)

say() { echo "environment: $*" >&2; }
die() {
  say "$*"
  exit 1
}

pip() { "$python" -m pip --disable-pip-version-check -q "$@" >&2; }
imports() { "$1" -c "import $2" >/dev/null 2>&1; }
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

# A system interpreter may be closed to pip (PEP 668) or not ours to write to.
may_install() {
  "$1" - <<'END' >/dev/null 2>&1
import os, sys, sysconfig
marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
managed = sys.prefix == sys.base_prefix and os.path.exists(marker)
sys.exit(managed or not os.access(sysconfig.get_path("purelib"), os.W_OK))
END
}

find_base() {
  for name in python3 python python3.13 python3.12 python3.11 python3.10; do
    if command -v "$name" >/dev/null 2>&1 && recent "$name"; then
      command -v "$name"
      return
    fi
  done
  die "no Python >= 3.10 was found"
}

find_python() {
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    [ -x "$VIRTUAL_ENV/bin/python" ] || die "VIRTUAL_ENV=$VIRTUAL_ENV holds no bin/python"
    echo "$VIRTUAL_ENV/bin/python"
    return
  fi
  for name in "$root/.venv/bin/python" python3 python; do
    if command -v "$name" >/dev/null 2>&1 && recent "$name" && imports "$name" torch,pytest &&
      may_install "$name"; then
      command -v "$name"
      return
    fi
  done
  if [ ! -x "$root/.venv/bin/python" ]; then
    base=$(find_base)
    say "making .venv with $base"
    "$base" -m venv --system-site-packages "$root/.venv" >&2
  fi
  echo "$root/.venv/bin/python"
}

python=$(find_python)
recent "$python" || die "$python is older than Python 3.10"

# Everything the installation depends on; an unchanged sum means that it is still good.
sum=$({
  echo "$python $extras ${BLL_BUILD:-auto}"
  "$python" -c 'import sys; print(sys.version)'
  "$python" -m pip --version
  find pyproject.toml setup.py bll_kernels/_version.py csrc tools/native_build \
    -type f ! -name '*.pyc' -print | sort | xargs cat
} 2>/dev/null | cksum | tr -s ' ' '-')
stamp=build/environment/$(echo "$extras" | tr ',' '-').stamp
if [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && imports "$python" torch,bll_kernels.ops,bll; then
  echo "$python"
  exit 0
fi

say "using $python"
if ! imports "$python" torch; then
  say "installing $torch (the only large download)"
  pip install "$torch"
fi
# As pip knows it: torch.__version__ may name a build (+cu130) that the package's own version does not.
version() { "$python" -c 'from importlib.metadata import version; print(version("torch"))'; }
before=$(version)
"$python" - <<'END' || die "torch $before is too old: torch >= 2.11 is needed"
import sys, torch
sys.exit(tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11))
END

mkdir -p build/environment
echo "torch==$before" >build/environment/constraints.txt
requires=$(sed -n 's/^requires = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '" ' | tr ',' ' ')
[ -n "$requires" ] || die "pyproject.toml: the build requirements were not found"
say "installing build requirements: $requires"
# With torch among them, which may have a ceiling of its own (2.11: setuptools below 82).
# shellcheck disable=SC2086  # one word per requirement
pip install -c build/environment/constraints.txt $requires torch
say "building and installing bll-kernels[$extras] in place"
pip install -c build/environment/constraints.txt --no-build-isolation -e ".[$extras]"
case ",$extras," in
*,test,* | *,dev,*)
  # What tests wrap beside our own models. timm comes alone: its torchvision would bring another torch.
  models=$(sed -n 's/^models = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '" ' | tr ',' ' ')
  say "installing models to wrap: $models timm"
  # shellcheck disable=SC2086  # one word per requirement
  if ! { pip install -c build/environment/constraints.txt $models &&
    pip install --no-deps "timm>=1.0"; }; then
    say "they could not be installed: tests that need them will be skipped"
  fi
  ;;
esac
[ "$(version)" = "$before" ] || die "torch changed from $before to $(version); nothing may do that"
"$python" -m bll_kernels | sed -n '/^backend/p' >&2
echo "$sum" >"$stamp"
echo "$python"
