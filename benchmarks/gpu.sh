#!/usr/bin/env bash
# Everything that wants a GPU, in one call of less than 10 minutes: sets up, checks, times, one table.
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
{
  "$python" -c "
import torch
assert torch.cuda.is_available(), 'no CUDA device'
card = torch.cuda.get_device_properties(0)
print(f'{card.name}, {card.total_memory / 2**30:.0f} GiB, torch {torch.__version__}')"
  step 80 "packed equals padded, with shared prefixes, in bfloat16" benchmarks/gpu_check.py
  step 170 "0.6B shape" benchmarks/gpu_speed.py --kinds compiled,int8-compiled,fp8-compiled
  step 110 "shared prompts" benchmarks/gpu_speed.py --count 512 --batch-sizes 256,512 --repeats 2 \
    --only "MetaEOL, 8 prompts" "five-shot prompts"
  step 90 "training" benchmarks/train.py --device cuda --shape 0.6B --chunk 32768 --mini-batch 256 \
    --threads 8
  step 140 "7B shape" benchmarks/gpu_speed.py --shape 7B --count 1024 --batch-sizes 64,256 \
    --only "mixed lengths" --repeats 2
} > >(tee "$out") 2>&1
exit "$failed"
