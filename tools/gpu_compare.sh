#!/bin/sh
# Compares a run of `make gpu` with a baseline. What is more than 10 % slower is measured again; it
# fails only if it is so twice, since one disturbed run proves nothing.
#   sh tools/gpu_compare.sh BASELINE.json FOLDER
set -eu
baseline=${1:?the committed run}
folder=${2:?the folder of this run}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
if [ ! -f "$baseline" ]; then
  echo "gpu-compare: there is no $baseline, nothing was compared; to begin one, commit" \
    "$folder/gpu.json there"
  exit 0
fi
first=$folder/gpu.json
if "$python" -m bll report --compare "$baseline" "$first"; then
  exit 0
else
  code=$?
fi
# 1 says that something is slower; anything else, that the comparison could not be made.
[ "$code" -eq 1 ] || exit "$code"
echo "gpu-compare: measuring again"
again=$folder-again
# The measured entries alone: the first run has built and tested.
"$python" -m bench.gpu --out "$again" --stage kernels ${GPU_ARGS:-}
"$python" -m bll report --compare "$baseline" "$first" "$again/gpu.json"
