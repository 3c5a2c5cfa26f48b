#!/usr/bin/env bash
# Build, test and measure on a GPU, from a plain checkout and offline: bench/gpu.sh
#
# Wants Linux, a GPU, and PYTHON (default python3) with torch, triton, pytest, hypothesis,
# pytest-benchmark, pybind11, cmake, ninja, setuptools; with nvcc the CUDA kernels are built too.
# Leaves a log of each part, results.json, results.md and tuned.json in OUT (default
# /tmp/fastgen-gpu), and nothing else. No part keeps the next from running; the exit code tells
# whether one failed.
# SECONDS_IN_ALL (default 520) is the time for everything, BUILD_SECONDS and TESTS_SECONDS what two
# parts may take of it at most; SMALL=1 tries the benchmarks on small sizes.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3} all=${SECONDS_IN_ALL:-520}
mkdir -p "${OUT:=/tmp/fastgen-gpu}" && OUT=$(cd "$OUT" && pwd) || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy, so that the checkout stays as it is; and not the folder to be in, where ./fastgen would
# shadow the installed package.
mkdir "$work/src"
tar -C "$root" --exclude=./.git --exclude=./build --exclude='*.so' --exclude='__pycache__' -c . |
  tar -C "$work/src" -x
cd "$work"
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export PATH=$PATH:/usr/local/cuda/bin
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor
parts=$work/parts.jsonl rows=$work/rows.jsonl failed=()
small=${SMALL:+--small}

# part NAME SECONDS LACKING COMMAND...: unless something is lacking, run a command for so long at most
part() {
  local name=$1 most=$2 lacking=$3 start=$SECONDS left=$((all - SECONDS - 10)) code=0 status
  shift 3
  ((most > left)) && most=$left
  if [ -n "$lacking" ]; then
    status="lacks $lacking"
  elif ((left < 5)); then
    status="no time left"
  else
    # by SIGINT, so that pytest still tells what failed
    timeout -s INT -k 5 "$most" "$@" >"$OUT/$name.log" 2>&1 || code=$?
    case $code in
    0) status=passed ;;
    124 | 137) status="cut off after $most s" ;;
    *) status="failed ($code): $(tail -n 1 "$OUT/$name.log" | LC_ALL=C tr -cd ' !#-[]-~' | cut -c 1-100)" ;;
    esac
  fi
  [ "$status" = passed ] || failed+=("$name: $status")
  echo "$name: $status, $((SECONDS - start)) s"
  printf '{"part": "%s", "status": "%s", "seconds": %d}\n' \
    "$name" "$status" $((SECONDS - start)) >>"$parts"
}

build() {
  "$python" -m pip install -q --no-index --no-build-isolation --no-deps --no-compile \
    --target "$work/site" ./src || return
  command -v nvidia-smi >/dev/null && nvidia-smi \
    --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader
  command -v nvcc >/dev/null && nvcc --version | tail -n 2
  "$python" -c '
import importlib.metadata, platform, torch
from fastgen.kernels import _op
print("python", platform.python_version())
for name in ("torch", "triton", "numpy", "pytest", "hypothesis"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "is missing")
print("CUDA", torch.version.cuda, "GPUs:", torch.cuda.device_count())
print("C++ kernels:", _op.native and _op.native.isas() or _op.ABSENT)
print("CUDA kernels:", getattr(_op.native, "cuda", "none") or "built")'
}

sanitize() {
  # Without the allocator's cache, or what lies beyond a tensor belongs to the next one.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local tool code=0
  for tool in memcheck racecheck; do
    echo "== $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
      "$python" -m pytest -q -m gpu -k "on_a_gpu and (float32 or plain or everything)" \
      src/tests/test_wavenet_sample_cuda.py src/tests/test_gpu.py || code=$?
  done
  return $code
}

export -f build sanitize
export python work
has_gpu=$("$python" -c 'import torch; print("" if torch.cuda.is_available() else "a GPU")' \
  2>/dev/null || echo "a Python with torch")
sanitizer=$has_gpu
command -v compute-sanitizer >/dev/null || sanitizer="${has_gpu:+$has_gpu, }compute-sanitizer"

part build "${BUILD_SECONDS:-170}" "" bash -c build
part tests "${TESTS_SECONDS:-170}" "$has_gpu" "$python" -m pytest -q -m gpu --durations=10 src/tests
part bench 200 "$has_gpu" "$python" -m pytest -q -m gpu --rows "$rows" $small \
  src/bench/bench_limits.py src/bench/bench_wavenet_sample.py src/bench
part tune 60 "$has_gpu" "$python" src/bench/tune.py --seconds 50 $small --out "$OUT/tuned.json"
part sanitizer 90 "$sanitizer" bash -c sanitize

touch "$rows"
"$python" src/bench/table.py "$work" && cp "$work"/results.* "$OUT" || failed+=("table: failed")
echo "in all: $SECONDS s; results in $OUT"
if ((${#failed[@]})); then
  printf 'not passed: %s\n' "${failed[@]}"
  exit 1
fi
