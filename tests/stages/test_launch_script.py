"""The torchrun lines and the Slurm file: run against a stand-in for Slurm, and with real torchrun on one machine."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdctool import recipe as recipes
from kdctool.cli import run as command
from kdctool.errors import UsageFault
from kdctool.stages import launch_script

ROOT = Path(__file__).resolve().parents[2]

SRUN = r"""#!/bin/bash
# srun of one node: leaves its options out and passes USR1 on to its task, once that has started something.
trap 'got=1; echo "srun got USR1" >>"$LOG"
if [ "$PYTHON" != python ] || grep -q "^python" "$LOG"; then kill -USR1 $task; fi' USR1
echo "srun started" >>"$LOG"
while [[ "$1" == --* ]]; do shift; done
SLURM_NODEID=0 "$@" &
task=$!
while :; do
    got=""
    wait $task; code=$?
    [ -n "$got" ] || exit $code
done
"""
SCONTROL = r"""#!/bin/bash
echo "scontrol $*" >>"$LOG"
[ "$1" = show ] && echo node1
[ "$1" != requeue ] || exit "${REFUSE:-0}"
"""
# A shell starts the interpreter: the kernel does not, where its path holds a space.
PYTHON = r"""#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
# torchrun with one training process below it, which does what PLAN says.
import json, os, signal, subprocess, sys, time
run, plan = os.environ["RUN_FOLDER"], json.loads(os.environ["PLAN"])
def write():
    os.makedirs(run, exist_ok=True)
    partial = os.path.join(run, "status.json.partial")
    with open(partial, "w") as file:
        json.dump(plan["status"], file, indent=2, sort_keys=True)
    os.replace(partial, os.path.join(run, "status.json"))
def log(text):
    with open(os.environ["LOG"], "a") as file:
        file.write(text + "\n")
if sys.argv[1] == "trainer":
    if plan.get("wait_for_signal"):
        asked = []
        signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
        log("trainer ready")
        end = time.monotonic() + 30
        while not asked and time.monotonic() < end:
            time.sleep(0.05)
        if not asked:
            sys.exit(9)
        time.sleep(1)
        write()
        log("trainer saved")
        sys.exit(0)
    if plan.get("status"):
        write()
    sys.exit(plan["code"])
log("python " + json.dumps(sys.argv[1:]) + " OMP " + os.environ["OMP_NUM_THREADS"])
child = subprocess.run([sys.executable, __file__, "trainer"])
sys.exit(1 if child.returncode else 0)
"""


@pytest.fixture(autouse=True)
def no_python_of_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """`PYTHON=... make test` hands its interpreter on, and the job file would take it."""
    monkeypatch.delenv("PYTHON", raising=False)


class Cluster:
    """A folder with srun, scontrol and python on PATH, and the job file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.run = folder, folder / "log", folder / "runs" / "a run"
        (folder / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
            path = folder / "bin" / name
            path.write_text(text.replace("{python}", sys.executable))
            path.chmod(0o755)
        loaded = recipes.loads('name = "tiny"\n[training]\nglobal_batch = 8')
        job = launch_script.plan(loaded, Path("my recipe.toml"), 1, 2, Path("runs/a run"))
        (folder / "job.sh").write_text(launch_script.sbatch(job))
        self.log.touch()

    def start(self, restarts: int = 0, refuse: int = 0, **plan: Any) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "LOG": str(self.log),
            "RUN_FOLDER": str(self.run),
            "PLAN": json.dumps(plan),
            "REFUSE": str(refuse),
            "RESEND_S": "0.2",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_CPUS_PER_TASK": "6",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        environment.pop("OMP_NUM_THREADS", None)
        return subprocess.Popen(
            ["bash", "job.sh"],
            cwd=self.folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def job(self, **plan: Any) -> tuple[int, str]:
        process = self.start(**plan)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    @property
    def requeues(self) -> int:
        return self.log.read_text().count("scontrol requeue 7")


def status(state: str, code: int, step: int, cause: str = "") -> dict[str, Any]:
    return {"state": state, "exit_code": code, "step": step, "cause": cause, "next": ""}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_run_that_is_done_is_not_queued_again(cluster: Cluster) -> None:
    code, said = cluster.job(status=status("done", 0, 90), code=0)
    assert code == 0, said
    assert cluster.requeues == 0
    line = next(line for line in cluster.log.read_text().splitlines() if line.startswith("python"))
    words, _, threads = line.removeprefix("python ").partition(" OMP ")
    asked = json.loads(words)
    assert asked[asked.index("kdctool.cli.rank") :] == [
        "kdctool.cli.rank",
        "pretrain",
        "my recipe.toml",
        "--out",
        "runs/a run",
    ]
    assert "--rdzv-endpoint=node1:20007" in asked
    assert threads == "3"


def test_an_interrupted_run_is_queued_again(cluster: Cluster) -> None:
    code, said = cluster.job(status=status("interrupted", 75, 40), code=0)
    assert (code, cluster.requeues) == (75, 1), said
    assert json.loads((cluster.run / "requeue.json").read_text()) == {
        "job": "7",
        "requeues_without_step": 0,
        "step": 40,
    }


def test_a_run_that_gets_no_further_is_queued_again_three_times(cluster: Cluster) -> None:
    plan = {"status": status("interrupted", 75, 40), "code": 0}
    for restarts in range(3):
        assert cluster.job(restarts=restarts, **plan)[0] == 75
        assert cluster.requeues == restarts + 1
    code, said = cluster.job(restarts=3, **plan)
    assert (code, cluster.requeues) == (75, 3)
    assert "stopped: 3 times in a row no step was finished" in said


def test_a_new_step_starts_the_count_again(cluster: Cluster) -> None:
    for restarts, step in enumerate((40, 40, 40, 41, 41, 41)):
        cluster.job(restarts=restarts, status=status("interrupted", 75, step), code=0)
    assert cluster.requeues == 6
    assert json.loads((cluster.run / "requeue.json").read_text())["requeues_without_step"] == 2


def test_a_job_submitted_by_hand_counts_from_the_beginning(cluster: Cluster) -> None:
    cluster.run.mkdir(parents=True)
    (cluster.run / "requeue.json").write_text('{\n  "job": "6",\n  "requeues_without_step": 3,\n  "step": 40\n}\n')
    assert cluster.job(status=status("interrupted", 75, 40), code=0)[0] == 75
    assert cluster.requeues == 1


@pytest.mark.parametrize(("state", "told"), [("failed", 4), ("failed", 1), ("interrupted", 130)])
def test_a_failed_run_passes_its_code_on_and_is_not_queued_again(cluster: Cluster, state: str, told: int) -> None:
    code, said = cluster.job(status=status(state, told, 12, "EnvironmentFault: no space left"), code=1)
    assert (code, cluster.requeues) == (told, 0)
    assert "EnvironmentFault: no space left" in said


def test_a_status_of_an_earlier_start_decides_nothing(cluster: Cluster) -> None:
    cluster.job(status=status("interrupted", 75, 40), code=0)
    code, said = cluster.job(restarts=1, status=None, code=1)
    assert (code, cluster.requeues) == (1, 1)
    assert "left no word" in said


def test_a_run_that_was_killed_is_not_queued_again(cluster: Cluster) -> None:
    code, _ = cluster.job(status={**status("running", 0, 40), "exit_code": None}, code=1)
    assert (code, cluster.requeues) == (1, 0)


def test_a_refused_requeue_is_said(cluster: Cluster) -> None:
    code, said = cluster.job(refuse=1, status=status("interrupted", 75, 40), code=0)
    assert code == 75
    assert "submit the same file again" in said


def wait_until(cluster: Cluster, process: subprocess.Popen[str], text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in cluster.log.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "requeues"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_a_signal_reaches_the_training_and_its_save_is_waited_for(
    cluster: Cluster, number: signal.Signals, requeues: int
) -> None:
    process = cluster.start(status=status("interrupted", 75, 40), code=0, wait_for_signal=True)
    wait_until(cluster, process, "trainer ready")
    process.send_signal(number)
    _, said = process.communicate(timeout=40)
    assert process.returncode == 75, said
    assert "trainer saved" in cluster.log.read_text()
    assert cluster.requeues == requeues
    assert (cluster.run / "status.json").exists()


def test_a_signal_before_anybody_listens_is_sent_again(cluster: Cluster) -> None:
    process = cluster.start(status=status("interrupted", 75, 40), code=0, wait_for_signal=True)
    wait_until(cluster, process, "srun started")
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=40)
    assert (process.returncode, cluster.requeues) == (75, 1), said
    assert cluster.log.read_text().count("srun got USR1") > 1


def test_the_file_in_docker_is_what_the_command_prints(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    asked = ["launch", "recipes/vggsound.toml", "--nodes", "2", "--gpus-per-node", "4", "--slurm"]
    assert command(asked) == 0
    printed = capsys.readouterr().out
    assert printed == (ROOT / "docker" / "slurm.sbatch").read_text(), f"kdctool {' '.join(asked)} > docker/slurm.sbatch"


@pytest.mark.parametrize("nodes", [1, 4])
def test_the_slurm_file_is_bash(tmp_path: Path, nodes: int) -> None:
    recipe = recipes.loads('name = "it\'s; rm"\n[training]\nglobal_batch = 64')
    job = launch_script.plan(recipe, Path("it's $(touch x).toml"), nodes, 2, Path("runs/$HOME `x`"))
    text = launch_script.sbatch(job, "1-00:00:00", "gpu")
    (tmp_path / "job.sh").write_text(text)
    assert subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path, check=False).returncode == 0
    assert not re.search(r"@[A-Z]+@", text.replace("USR1@120", ""))
    assert f"#SBATCH --nodes={nodes}\n" in text
    assert "#SBATCH --partition=gpu\n" in text
    assert "#SBATCH --signal=B:USR1@120\n" in text
    arguments = next(line for line in text.splitlines() if line.startswith("ARGUMENTS="))
    told = subprocess.run(
        ["bash", "-c", arguments + "\nprintf '%s\\n' \"${ARGUMENTS[@]}\""], cwd=tmp_path, capture_output=True, text=True
    )
    assert told.stdout.splitlines() == ["pretrain", "it's $(touch x).toml", "--out", "runs/$HOME `x`"]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("more", "text"), [(["--time", "soon"], "--time soon"), (["--partition", "gpu\n#x"], "--partition")]
)
def test_values_slurm_would_not_take_are_refused(
    more: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["launch", "recipes/vggsound.toml", "--slurm", *more]) == 2
    said = capsys.readouterr()
    assert text in said.err
    assert not said.out


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does() -> None:
    recipe = recipes.loads('name = "tiny"\n[training]\nglobal_batch = 100')
    with pytest.raises(UsageFault, match="not a multiple of 2 nodes x 8 GPUs = 16") as fault:
        launch_script.plan(recipe, Path("r.toml"), 2, 8, None)
    assert "--set training.global_batch=96" in fault.value.next_step


def test_every_node_gets_its_line() -> None:
    recipe = recipes.loads('name = "tiny"\n[training]\nglobal_batch = 64')
    job = launch_script.plan(recipe, Path("my r.toml"), 2, 4, Path("runs/x"), ("--set", "seed=3"))
    lines = [shlex.split(line) for line in launch_script.torchrun_lines(job, "gpu01")]
    assert [line[-6:] for line in lines] == [["pretrain", "my r.toml", "--out", "runs/x", "--set", "seed=3"]] * 2
    assert ["--node-rank=0" in lines[0], "--node-rank=1" in lines[1]] == [True, True]
    assert all("--rdzv-endpoint=gpu01:29500" in line and "--nnodes=2" in line for line in lines)
    assert "--standalone" in launch_script.torchrun_lines(launch_script.plan(recipe, Path("r"), 1, 4, None), "")[0]


@pytest.mark.dist
def test_the_lines_of_two_nodes_train_one_run(tiny_recipe: Any, tmp_path: Path) -> None:
    path, run = tiny_recipe("training.epochs=1"), tmp_path / "run"
    job = launch_script.plan(recipes.load(path), path, 2, 1, run, ("--device", "cpu"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    lines = [shlex.split(line)[1:] for line in launch_script.torchrun_lines(job, f"127.0.0.1:{port}")]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *line], env=environment, stderr=subprocess.PIPE
        )
        for line in lines
    ]
    for node in nodes:
        _, said = node.communicate(timeout=180)
        assert node.returncode == 0, said.decode()
    assert json.loads((run / "status.json").read_text())["state"] == "done"


@pytest.mark.dist
def test_the_slurm_file_stops_a_real_training_and_goes_on(tiny_recipe: Any, tmp_path: Path) -> None:
    path, run = tiny_recipe("training.epochs=200"), tmp_path / "run"
    cluster = Cluster(tmp_path)
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL.replace("node1", "127.0.0.1"))
    job = launch_script.plan(recipes.load(path), path, 1, 2, run, ("--device", "cpu"))
    (tmp_path / "job.sh").write_text(launch_script.sbatch(job))
    environment = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for restarts in range(2):
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            process = cluster.start(restarts=restarts)
        before = len((run / "metrics.jsonl").read_text().splitlines()) if restarts else 0
        deadline = time.monotonic() + 120
        while (
            not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < before + 3
        ):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=120)
        found = json.loads((run / "status.json").read_text())
        assert (process.returncode, found["state"], found["exit_code"]) == (75, "interrupted", 75), said
        assert cluster.requeues == restarts + 1
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(found["step"]))
