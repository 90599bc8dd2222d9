#!/bin/sh
# Style and types: ruff, mypy in strict mode over both packages, clang-format. Shows every finding.
#   sh tools/lint.sh PYTHON
set -u
python=${1:?the interpreter with the dev tools}
cd "$(dirname "$0")/.."
failed=0

check() {
  echo "lint: $1"
  shift
  "$@" || failed=1
}

tool() { "$python" -c "import sysconfig; print(sysconfig.get_path('scripts') + '/$1')"; }

check "ruff check" "$python" -m ruff check .
check "ruff format" "$python" -m ruff format --check bll_kernels python tests bench examples tools setup.py
check "mypy --strict" "$python" -m mypy
sources=$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
# shellcheck disable=SC2086  # one word per file
check "clang-format" "$(tool clang-format)" --dry-run -Werror $sources
[ $failed -eq 0 ] && echo "lint: clean"
exit $failed
