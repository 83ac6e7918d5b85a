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

{
  "$python" -c "
import torch
assert torch.cuda.is_available(), 'no CUDA device'
card = torch.cuda.get_device_properties(0)
print(f'{card.name}, {card.total_memory / 2**30:.0f} GiB, torch {torch.__version__}')"
  echo "== packed equals padded, with shared prefixes, in bfloat16"
  timeout 120 "$python" benchmarks/gpu_check.py
  echo "== against sentence-transformers, 0.6B shape"
  timeout 200 "$python" benchmarks/encode.py --device cuda --batch-sizes 128 --repeats 3 \
    --only "mixed lengths" --count 4096
  timeout 60 "$python" benchmarks/encode.py --device cuda --batch-sizes "" --repeats 3 \
    --only "MetaEOL, 8 prompts" --count 1024
  timeout 90 "$python" benchmarks/encode.py --device cuda --batch-sizes "" --repeats 3 --int8 \
    --only "short queries" --count 4096
  echo "== 7B shape"
  timeout 150 "$python" benchmarks/encode.py --device cuda --batch-sizes "" --repeats 3 \
    --only "mixed lengths" --count 1024 --shape 7B
} 2>&1 | tee "$out"
