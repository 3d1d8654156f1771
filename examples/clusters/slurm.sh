#!/bin/bash
#SBATCH --job-name=autotune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=autotune-%j.log

# A search on the nodes of a Slurm job (docs/clusters.md):
#
#     sbatch --nodes=8 examples/clusters/slurm.sh --space llm13b --nodes 8
#
# Arguments are those of `autotune run`. Ray is started on the nodes, with a token of its own and on free
# ports, and ended with the search. A job that is requeued goes on where it was; so does another one that
# is given the same OUT. `autotune` and `ray` must be in PATH on every node (activate the environment
# before sbatch), and OUT must be on a file system that all nodes share.
#
# OUT                the run directory; default: runs/slurm-JOB in the folder of sbatch
# HEAD_ADDRESS       address of the first node in the network to use, if its name resolves to another
# RAY_START_OPTIONS  more options of `ray start` for all nodes
set -euo pipefail

out=${OUT:-runs/slurm-$SLURM_JOB_ID}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}  # Slurm runs this script there
read -r -a more <<< "${RAY_START_OPTIONS:-}"
START_SECONDS=600
one_node=(srun --overlap --cpu-bind=none --nodes=1 --ntasks=1)

# The last node says how the others reach the first one: there its name may stand for 127.0.0.1.
head_address=${HEAD_ADDRESS:-$("${one_node[@]}" --nodelist="${nodes[-1]}" getent ahostsv4 "$head" |
    awk 'NR == 1 {print $1}')}
read -r port client_port < <(python3 -c '
import socket
sockets = [socket.create_server(("", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))')
address=$head_address:$port

# Without the token nobody else on these nodes can run code in this Ray. srun passes both on.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # Slurm kills 30 s after its signal
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# On each node Ray has its files in a folder that only this user can enter, and that is removed.
# The path is short, because those of sockets may have 107 characters. srun kills a step on SIGTERM but
# passes SIGUSR1 on, to the process group of the task: Ray is in another, and ends in good order.
# shellcheck disable=SC2016
ray_node='
folder=$(mktemp -d /tmp/ray-XXXXXX)
setsid ray start --block --temp-dir="$folder/ray" --dashboard-agent-listen-port=0 "$@" \
    > "$folder/start.log" 2>&1 &
trap "kill -TERM $! 2> /dev/null" USR1 TERM
while kill -0 $! 2> /dev/null; do wait $!; done
grep -q "Ray runtime started" "$folder/start.log" || tail -n 20 "$folder/start.log" >&2
rm -rf "$folder"
'
steps=()
# shellcheck disable=SC2329
end_ray() {
    trap '' TERM INT HUP USR1 USR2
    kill -USR1 "${steps[@]}" 2> /dev/null || true
    for _ in {1..60}; do
        kill -0 "${steps[@]}" 2> /dev/null || break
        sleep 1
    done
    kill -TERM "${steps[@]}" 2> /dev/null || true
    wait "${steps[@]}" || true
}
trap end_ray EXIT

"${one_node[@]}" --nodelist="$head" bash -c "$ray_node" ray-head \
    --head --include-dashboard=false --node-ip-address="$head_address" --port="$port" \
    --ray-client-server-port="$client_port" "${more[@]}" &
steps+=($!)
if [ ${#nodes[@]} -gt 1 ]; then
    count=$((${#nodes[@]} - 1))
    others=$(IFS=,; echo "${nodes[*]:1}")
    srun --overlap --cpu-bind=none --nodes=$count --ntasks=$count --nodelist="$others" \
        bash -c "$ray_node" ray-node --address="$address" "${more[@]}" &
    steps+=($!)
fi

# The search wants all nodes to be there when it begins.
nodes_up() {
    ray health-check --address "$address" > /dev/null 2>&1 && python3 -c '
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="critical")
print(sum(node["Alive"] for node in ray.nodes()))' "$address" 2> /dev/null || echo 0
}
until [ "$(nodes_up)" -ge ${#nodes[@]} ]; do
    for step in "${steps[@]}"; do
        if ! kill -0 "$step" 2> /dev/null || [ $SECONDS -gt "$START_SECONDS" ]; then
            echo "Ray did not start on all of ${nodes[*]} within $START_SECONDS s" >&2
            exit 1
        fi
    done
    sleep 1
done

if [ -e "$out/run.json" ]; then
    what=(--resume "$out" --trust-run)  # this script has made it
else
    what=("$@" --out "$out")
fi
autotune run "${what[@]}" --address "$address" &
search=$!
# Slurm's signals reach this shell only: the search ends in good order, and can be resumed.
trap 'kill -TERM "$search" 2> /dev/null || true' TERM INT HUP USR1 USR2
status=0
while kill -0 "$search" 2> /dev/null; do wait "$search" && status=0 || status=$?; done
exit "$status"
