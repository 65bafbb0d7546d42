"""Commands for several machines: a torchrun line for each node, or a file for Slurm's sbatch.

Nothing is started here. The Slurm file stands alone: bash, srun and scontrol, no library.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from kdctool.errors import UsageFault
from kdctool.recipe import Recipe
from kdctool.stages.run_folder import default_folder

PORT = 29500
MAX_RESTARTS = 3
TIME = re.compile(r"(\d+-\d{1,2}(:\d{2}){0,2}|\d+(:\d{2}){0,2})")
"""Slurm's minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on."""
NAME = re.compile(r"[A-Za-z0-9_.,@+-]+")


@dataclass(frozen=True)
class Job:
    """What is to be started, and on how many machines."""

    recipe: Recipe
    path: Path
    nodes: int
    gpus_per_node: int
    run: Path
    options: tuple[str, ...] = ()
    """More arguments of kdctool pretrain."""

    @property
    def pretrain(self) -> list[str]:
        """Arguments of kdctool."""
        return ["pretrain", str(self.path), "--out", str(self.run), *self.options]


def plan(
    recipe: Recipe, path: Path, nodes: int, gpus_per_node: int, out: Path | None, options: tuple[str, ...] = ()
) -> Job:
    """Check that the recipe's batch can be split over that many GPUs; UsageFault with a batch that can."""
    ranks, batch, micro = nodes * gpus_per_node, recipe.training.global_batch, recipe.training.micro_batch
    per_pass = ranks * (micro or 1)
    if batch % per_pass:
        asked = f"{nodes} nodes x {gpus_per_node} GPUs" + (f" x micro_batch {micro}" if micro else "")
        fits = max(1, round(batch / per_pass)) * per_pass
        raise UsageFault(
            f"training.global_batch = {batch} is not a multiple of {asked} = {per_pass}",
            f"--set training.global_batch={fits}, or other numbers of nodes and GPUs",
        )
    return Job(recipe, path, nodes, gpus_per_node, out or default_folder(recipe, "pretrain", {}), options)


def torchrun_lines(job: Job, endpoint: str) -> list[str]:
    """One command per node, the first for the node that `endpoint` (host or host:port) names."""
    torchrun = ["torchrun", f"--nproc-per-node={job.gpus_per_node}", f"--max-restarts={MAX_RESTARTS}"]
    command = ["-m", "kdctool", *job.pretrain]
    if job.nodes == 1:
        return [shlex.join([*torchrun, "--standalone", *command])]
    endpoint = endpoint if re.search(r":\d+$", endpoint) else f"{endpoint}:{PORT}"
    meeting = [
        f"--nnodes={job.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={job.run.name}",
    ]
    return [shlex.join([*torchrun, *meeting, f"--node-rank={rank}", *command]) for rank in range(job.nodes)]


def sbatch(job: Job, time: str = "24:00:00", partition: str = "", cpus_per_gpu: int | None = None) -> str:
    """The whole file for sbatch; UsageFault for values that Slurm would not take."""
    if not TIME.fullmatch(time):
        raise UsageFault(f"--time {time}: Slurm takes minutes, hours:minutes:seconds or days-hours", "--time 24:00:00")
    if partition and not NAME.fullmatch(partition):
        raise UsageFault(f"--partition {partition}: not a name of a partition", "sinfo lists them")
    workers = job.recipe.data.workers
    lines = {
        "@NAME@": re.sub(r"[^A-Za-z0-9_.-]", "-", job.recipe.name),
        "@NODES@": str(job.nodes),
        "@GPUS@": str(job.gpus_per_node),
        "@CPUS@": str(job.gpus_per_node * (cpus_per_gpu or workers + 1)),
        "@TIME@": time,
        "@PARTITION@": f"#SBATCH --partition={partition}\n" if partition else "",
        "@RUN@": shlex.quote(str(job.run)),
        "@ARGUMENTS@": shlex.join(job.pretrain),
        "@RESTARTS@": str(MAX_RESTARTS),
    }
    return re.sub("|".join(lines), lambda found: lines[found[0]], SBATCH)


SBATCH = r"""#!/bin/bash
# Made by `kdctool launch --slurm`. Submit it from the folder that its paths start in: sbatch FILE
#
# Two minutes before the time limit Slurm sends USR1 to this shell. It is passed on to the training processes, which
# finish their step, save, and write status.json with exit code 75: then the job is queued again and goes on from
# there. A run that failed is not queued again, nor one that was queued again three times without a new step.
#SBATCH --job-name=@NAME@
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=@GPUS@
#SBATCH --cpus-per-task=@CPUS@
#SBATCH --time=@TIME@
@PARTITION@#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -uo pipefail

RUN=@RUN@
ARGUMENTS=(@ARGUMENTS@)
PYTHON=${PYTHON:-python}
GPUS=@GPUS@
MAX_IDLE_REQUEUES=3
RESEND_S=${RESEND_S:-10}

say() { echo "kdctool job ${SLURM_JOB_ID:-?}: $*" >&2; }

# One value of a JSON file that kdctool wrote: a key per line.
field() { sed -n 's/^ *"'"$1"'": *"\{0,1\}\([^",]*\)"\{0,1\},\{0,1\} *$/\1/p' "$2" 2>/dev/null | head -n 1; }

# wait_for PID: its exit code, through any number of signals that interrupt the waiting.
wait_for() {
    local code
    while :; do
        caught=0
        wait "$1"
        code=$?
        [ "$caught" = 1 ] || return "$code"
    done
}

# What runs on every node: torchrun, which does not pass USR1 on. kdctool.cli.rank ends with 0 after a save that was
# asked for; torchrun would take 75 for a crash and start the process again.
node() {
    trap '' USR1 # In torchrun's own process. The training processes set their handler themselves.
    "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$GPUS" \
        --node-rank="$SLURM_NODEID" --rdzv-backend=c10d --rdzv-endpoint="$ENDPOINT" --rdzv-id="$MEETING" \
        --rdzv-conf="is_host=$([ "$SLURM_NODEID" = 0 ] && echo 1 || echo 0)" --max-restarts=@RESTARTS@ \
        -m kdctool.cli.rank "$@" &
    torchrun=$!
    caught=0
    trap 'caught=1; kill -USR1 $(cat /proc/$torchrun/task/*/children 2>/dev/null) 2>/dev/null' USR1
    trap 'caught=1; kill -TERM "$torchrun" 2>/dev/null' TERM
    wait_for "$torchrun"
}

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export ENDPOINT="$HEAD:$((20000 + SLURM_JOB_ID % 10000))"
export MEETING="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
export PYTHON GPUS
threads=$((${SLURM_CPUS_PER_TASK:-$GPUS} / GPUS))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

# A job that was submitted by hand counts from the beginning.
[ "${SLURM_RESTART_COUNT:-0}" != 0 ] || rm -f "$RUN/requeue.json"
before=$(stat -c '%i %y' "$RUN/status.json" 2>/dev/null)

asked=""
caught=0
sender=""
srun=""
# Sent again until srun ends: a signal that comes while processes start has nobody to hear it.
pass_on() {
    caught=1
    asked=$1
    say "got $1; the training saves and stops"
    [ -n "$srun" ] && [ -z "$sender" ] || return
    (while kill -USR1 "$srun" 2>/dev/null; do sleep "$RESEND_S"; done) &
    sender=$!
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=120 \
    bash -c "trap '' USR1; $(declare -f wait_for node)"'; node "$@"' node "${ARGUMENTS[@]}" &
srun=$!
[ -z "$asked" ] || pass_on "$asked"
wait_for "$srun"
code=$?
[ -n "$sender" ] && kill "$sender" 2>/dev/null
trap - USR1 TERM

# torchrun and srun know 0 and 1; status.json knows why. One that this start did not write says nothing about it.
state="" said="" step=0
if [ "$(stat -c '%i %y' "$RUN/status.json" 2>/dev/null)" != "$before" ]; then
    state=$(field state "$RUN/status.json")
    said=$(field exit_code "$RUN/status.json")
    step=$(field step "$RUN/status.json")
fi
case "$said" in '' | *[!0-9]*) ;; 0) ;; *) code=$said ;; esac
if [ "$state" = running ] || [ -z "$state" ]; then
    [ "$code" != 0 ] || code=1
    say "the training ended with code $code and left no word in $RUN/status.json"
    exit "$code"
fi
if [ "$state" != interrupted ] || [ "$code" != 75 ]; then
    say "$state at step $step, exit code $code: $(field cause "$RUN/status.json")"
    exit "$code"
fi
if [ "$asked" = TERM ]; then
    say "interrupted at step $step by TERM (scancel or preemption): not queued again by this job"
    exit 75
fi

idle=0
last=$(field step "$RUN/requeue.json")
if [ "$step" -le "${last:-0}" ]; then
    idle=$(field requeues_without_step "$RUN/requeue.json")
    idle=$((${idle:-0} + 1))
fi
printf '{\n  "job": "%s",\n  "requeues_without_step": %s,\n  "step": %s\n}\n' "$SLURM_JOB_ID" "$idle" "$step" \
    >"$RUN/requeue.json.partial" && mv "$RUN/requeue.json.partial" "$RUN/requeue.json"
if [ "$idle" -ge "$MAX_IDLE_REQUEUES" ]; then
    say "stopped: $idle times in a row no step was finished between start and time limit (still step $step)." \
        "Ask for more time, or save more often; then submit again"
    exit 75
fi
say "interrupted at step $step: queued again"
scontrol requeue "$SLURM_JOB_ID" || say "scontrol refused: submit the same file again, it goes on at step $step"
exit 75
"""
