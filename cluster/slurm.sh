#!/usr/bin/env bash
# A search as one Slurm job: Ray's head on the first node, a worker on every other, the driver beside the head.
#
#   cluster/setup.sh                                         # once, in a home folder that all nodes see
#   sbatch cluster/slurm.sh digits-1 -- digits --trials 64   # as start_or_resume.sh; flags before -- such as --workers
#
# The same line again goes on with the study, and so does the job itself where it is run again: out of time, preempted,
# or a node lost. `scancel` ends it for good, and the study can be resumed.
# METASEARCH_STORAGE, in ~/.metasearch.env or your environment: PostgreSQL, with the password in ~/.pgpass. Without it:
# SQLite in METASEARCH_HOME, which must then be on a file system whose locks work (NFS version 4, Lustre with flock).
#SBATCH --job-name=metasearch
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
##SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=metasearch-%j.log
set -euo pipefail
# Slurm runs a copy of this file: where the others lie is known from where `sbatch` was called.
here=${METASEARCH_CLUSTER:-$SLURM_SUBMIT_DIR/cluster}
if [ "$#" -lt 3 ] || [ ! -f "$here/start_or_resume.sh" ]; then
    echo "slurm.sh: call it from the checkout: sbatch cluster/slurm.sh STUDY [FLAGS...] -- TASK [FLAGS...]" >&2
    exit 2
fi
# shellcheck source-path=SCRIPTDIR source=waiting.sh
. "$here/waiting.sh"
# shellcheck source-path=SCRIPTDIR source=environment.sh
. "$here/environment.sh"
study=$1
shift

export METASEARCH_HOME=${METASEARCH_HOME:-$HOME/.metasearch}
head=$SLURMD_NODENAME
# Not --ip-address: that is loopback where /etc/hosts says so, and Ray does not answer there.
head_ip=${METASEARCH_HEAD_IP:-$(hostname --all-ip-addresses | cut -d ' ' -f 1)}
# Of this job alone, should others share its nodes: ports, a folder for Ray's sockets (short: their paths are bounded).
port=$((20000 + SLURM_JOB_ID % 5000))
sockets=/tmp/ray-$SLURM_JOB_ID
# A token that dies with the job, in a file that all its nodes see and nobody else can read.
secrets=$METASEARCH_HOME/slurm-$SLURM_JOB_ID
mkdir -p "$METASEARCH_HOME"
rm -rf "$secrets"
(umask 077; mkdir "$secrets"; python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$secrets/token")
export RAY_AUTH_TOKEN_PATH=$secrets/token

driver=
nearly_over=
end() {
    local code=$?
    # The steps first: `ray start --block` takes its node's processes along.
    kill "${steps[@]}" 2> /dev/null || true
    wait "${steps[@]}" 2> /dev/null || true
    rm -rf "$secrets"
    if [ -n "$nearly_over" ] && [ "$code" != 0 ]; then
        echo "slurm.sh: out of time; $study goes on when Slurm runs the job again" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
}
steps=()
trap end EXIT
# shellcheck disable=SC2317,SC2329  # the traps call it
stop() {
    [ -n "$driver" ] || exit 130
    kill -TERM "$driver" 2> /dev/null || true
}
trap stop TERM
trap 'nearly_over=1; stop' USR1

# On every node: the CPUs are named, since srun does not take them over from sbatch.
step() {
    srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 "$@" &
    steps+=("$!")
}
# Two cores less for trials where driver and head are: they end with the job anyhow, so trials there risk no more.
step --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --block --disable-usage-stats --temp-dir="$sockets" \
    --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$((port + 5000))" \
    --num-cpus="$((SLURM_CPUS_PER_TASK > 2 ? SLURM_CPUS_PER_TASK - 2 : 1))"
tries=60
until ray health-check --address "$head_ip:$port" > /dev/null 2>&1; do
    tries=$((tries - 1))
    if [ "$tries" = 0 ]; then
        echo "slurm.sh: Ray's head does not answer at $head_ip:$port; METASEARCH_HEAD_IP says another address" >&2
        exit 1
    fi
    sleep 2
done
workers=$((SLURM_JOB_NUM_NODES - 1))
if [ "$workers" -gt 0 ]; then
    step --nodes="$workers" --ntasks="$workers" --exclude="$head" ray start --block --disable-usage-stats \
        --temp-dir="$sockets" --address="$head_ip:$port" --num-cpus="$SLURM_CPUS_PER_TASK"
fi

"$here/start_or_resume.sh" "$study" --address "$head_ip:$port" "$@" &
driver=$!
wait_until_ended "$driver"
