#!/bin/sh
# Prints what must not be missing here, for BLL_REQUIRE: what is asked for there already; else
# native and triton (which the extra `test` installs) where a C++ compiler exists and BLL_BUILD does
# not leave it out, and cuda-compile (the CUDA kernels compiled and emulated, no GPU needed) where
# nvcc exists too.
set -eu
if [ -n "${BLL_REQUIRE:-}" ]; then
  echo "$BLL_REQUIRE"
  exit 0
fi
[ "${BLL_BUILD:-auto}" = none ] && exit 0
[ "$(uname -s)" = Linux ] || exit 0
for compiler in "${CXX:-g++}" clang++ c++; do
  # CXX may carry options; its first word is the program.
  if command -v "${compiler%% *}" >/dev/null 2>&1; then
    if command -v nvcc >/dev/null 2>&1 || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
      echo native,triton,cuda-compile
    else
      echo native,triton
    fi
    exit 0
  fi
done
