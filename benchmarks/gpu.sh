#!/usr/bin/env bash
# Everything that wants a GPU, in one call of less than 8 minutes: sets up, checks, times, one table.
#
#     benchmarks/gpu.sh [OUT]     OUT: folder for gpu.txt (default: the current one)
#
# An interpreter with torch for CUDA, transformers and sentence-transformers is taken from $PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
out="${1:-.}/gpu.txt"
mkdir -p "$(dirname "$out")"

if ! "$python" -c "import torch, transformers, sentence_transformers" 2>/dev/null; then
  "$python" -m venv .venv-gpu
  .venv-gpu/bin/pip install -q torch -e ".[train]" sentence-transformers
  python="$PWD/.venv-gpu/bin/python"
fi
export PYTHONPATH="$PWD/src:$PWD"

failed=0
step() { # SECONDS WHAT COMMAND...: what does not end in time does not keep the others from running
  local seconds="$1" what="$2"
  shift 2
  echo "== $what"
  timeout "$seconds" "$python" "$@" || { failed=1; echo "failed, or not done in $seconds s: $what"; }
}
against() { # SECONDS WHAT OPTIONS...
  step "$1" "$2" benchmarks/encode.py --device cuda --repeats 3 "${@:3}"
}

{
  "$python" -c "
import torch
assert torch.cuda.is_available(), 'no CUDA device'
card = torch.cuda.get_device_properties(0)
print(f'{card.name}, {card.total_memory / 2**30:.0f} GiB, torch {torch.__version__}')"
  step 80 "packed equals padded, with shared prefixes, in bfloat16" benchmarks/gpu_check.py
  against 130 "mixed lengths, 0.6B shape" --batch-sizes 128 --compiled \
    --only "mixed lengths" --count 4096
  against 50 "MetaEOL" --batch-sizes "" --only "MetaEOL, 8 prompts" --count 1024
  against 60 "short queries" --batch-sizes "" --int8 --only "short queries" --count 4096
  against 140 "mixed lengths, 7B shape" --batch-sizes "" --compiled \
    --only "mixed lengths" --count 1024 --shape 7B
} > >(tee "$out") 2>&1
exit "$failed"
