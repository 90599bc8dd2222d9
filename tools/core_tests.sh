#!/bin/sh
# The C++ tests of the torch-free core, where CMake and a compiler are found.
#
#   sh tools/core_tests.sh PYTHON
#
# The kernels tested are the very objects that the installation of PYTHON linked, where it did.
set -eu
python=${1:?the interpreter that has the project installed}
cd "$(dirname "$0")/.."
if ! command -v cmake >/dev/null 2>&1; then
  echo "core tests: not run: cmake was not found (the Python tests cover the same kernels)"
  exit 0
fi
if [ -z "$(sh tools/required_backends.sh)" ]; then
  echo "core tests: not run: no C++ compiler was found"
  exit 0
fi
echo "core tests: building"
objects=$(pwd)/build/native-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
[ -f "$objects/_core.so" ] || objects=
cmake -S . -B build/cmake -DBLL_OBJECTS="$objects" >build/cmake.log 2>&1 &&
  cmake --build build/cmake -j 2 >>build/cmake.log 2>&1 ||
  {
    tail -n 40 build/cmake.log
    exit 1
  }
ctest --test-dir build/cmake -j 2 --output-on-failure
