#!/bin/sh
# Prints the backends whose absence is a failure here: those asked for in BLL_REQUIRE; else native
# where a C++ compiler exists and BLL_BUILD does not leave it out.
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
    echo native
    exit 0
  fi
done
