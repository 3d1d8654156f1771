#!/bin/bash
# A search on the GPUs of this machine, which ends neither with the terminal nor with the connection:
#
#     nohup examples/clusters/one-machine.sh --model config.json > search.log 2>&1 &
#
# Arguments are those of `autotune run`. Ray is started and ended by the search and listens on 127.0.0.1
# only. The same command again goes on with a search that was interrupted.
#
# OUT   the run directory; default: runs/one-machine
# GPUS  how many GPUs to use; default: all of them, as many as nvidia-smi lists
set -euo pipefail

out=${OUT:-runs/one-machine}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

if [ -e "$out/run.json" ]; then
    exec autotune run --resume "$out" --trust-run
fi
exec autotune run --nodes 1 --gpus-per-node "$gpus" --out "$out" "$@"
