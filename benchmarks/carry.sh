#!/bin/sh
# Wheels for a machine without network that has PyTorch but not what gpu_all.py and the tests of the GPU need.
#
#     benchmarks/carry.sh FOLDER [PYTHON_VERSION]        default 3.12; needs pip and a network, here
#
# It puts wheels for x86-64 Linux into FOLDER, at the versions of constraints.txt, and prints their size and the
# commands to type there, in the checkout with FOLDER in it. What that machine has of its own is left out: torch,
# torchvision, triton, numpy, pillow, tqdm; for the tests also pytest, pytest-timeout and psutil.
set -eu
folder=${1:?usage: benchmarks/carry.sh FOLDER [PYTHON_VERSION]}
python=${2:-3.12}
root=$(cd "$(dirname "$0")/.." && pwd)

# To measure. Order of resort where one is missing there after all: name it in EXTRA="psutil rich" and run this again.
needed="pydantic pydantic-core annotated-types typing-inspection typing-extensions tomli-w safetensors soundfile cffi
    pycparser webdataset braceexpand"
# For whole commands on the card (kdctool pretrain ...) and its tests.
commands="typer fsspec annotated-doc shellingham"

pins=$(for name in $needed $commands ${EXTRA:-}; do
    grep -i "^$name==" "$root/constraints.txt" || { echo "constraints.txt has no $name" >&2; exit 2; }
done)
mkdir -p "$folder"
# pip takes each manylinux tag by its number.
platforms=$(for n in 17 24 27 28 31 34; do printf -- '--platform manylinux_2_%s_x86_64 ' "$n"; done)
# shellcheck disable=SC2086
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    $platforms --platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64 \
    -d "$folder" $pins
echo "$(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sk "$folder" | cut -f1) KB in $folder"
cat <<END
There, in the checkout (the first line once; results are in results_gpu/gpu_all.json, --copy FILE writes them elsewhere too):

    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site $folder/*.whl
    export PYTHONPATH=/tmp/site OMP_NUM_THREADS=4
    python3 benchmarks/gpu_all.py --out smoke_gpu --smoke --device cuda --minutes 2.5
    python3 -m pytest -q -m gpu tests/gpu --timeout 120
    python3 benchmarks/gpu_all.py --out results_gpu --minutes 9
END
