"""Whole runs in processes of their own, on rendered pairs: killed, and on two processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from training import SMALL, small

from tnav.cli import main
from tnav.learn.journal import read_rows
from tnav.learn.train import train

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
PATIENCE_S = 300.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

TWO = """
import sys
from pathlib import Path
import torch
from tnav.learn.distributed import TrainingError, joined
from tnav.learn.recipe import load_training
from tnav.learn.train import train

torch.set_num_threads(1)
out = Path(sys.argv[2])
with joined(torch.device("cpu")) as (group, device):
    result = train(load_training(sys.argv[1]), out, device, group=group)
    try:
        group.assert_same(f"{group.rank:064x}", 99, device)
    except TrainingError as error:
        (out / f"refused-{group.rank}").write_text(str(error))
    (out / f"digest-{group.rank}").write_text(f"{group.world} {result.digest}")
tasks = Path("/proc/self/task")
names = [(task / "comm").read_text() for task in tasks.iterdir()] if tasks.is_dir() else []
(out / f"left-{group.rank}").write_text(" ".join(name for name in names if "gloo" in name))
"""


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _written(tmp_path, **changes):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}), encoding="utf-8")
    return path


def _wait_for_step(process, folder, step):
    """Until the log has a step, or the process or patience ends."""
    log, end_s = folder / "log.jsonl", time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s and process.poll() is None:
        if log.exists() and f'"train", "step": {step},' in log.read_text():
            return
        time.sleep(0.005)
    raise AssertionError(f"no step {step}: {process.communicate()[1]}")


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_to_the_same_curve_and_the_same_bits(tmp_path):
    changes = {"steps": 24, "log_steps": 1, "epoch_steps": 24}
    whole = train(small(**changes), tmp_path / "whole", CPU)
    killed = tmp_path / "killed"
    command = [sys.executable, ROOT / "train.py", "--recipe", _written(tmp_path, **changes)]
    process = subprocess.Popen(
        [*map(str, command), "--out", str(killed), "--device", "cpu"],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_step(process, killed, 6)  # after the checkpoint of step 4
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "weights.safetensors").exists()
    reached = read_rows(killed, "train")[-1]["step"]
    again = train(small(**changes), killed, CPU)
    resumed_at = read_rows(killed, "start")[-1]["step"]
    assert 4 <= resumed_at <= reached < 24
    for kind in ("train", "validation", "checkpoint"):
        assert read_rows(killed, kind) == read_rows(tmp_path / "whole", kind)
    assert again.digest == whole.digest
    assert again.weights.read_bytes() == whole.weights.read_bytes()


def test_two_processes_end_on_the_same_weights(tmp_path):
    script, out = tmp_path / "two.py", tmp_path / "out"
    script.write_text(TWO, encoding="utf-8")
    recipe = _written(tmp_path, steps=4)
    done = subprocess.run(
        [*TORCHRUN, str(script), str(recipe), str(out)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digests = [(out / f"digest-{rank}").read_text() for rank in (0, 1)]
    assert digests[0] == digests[1]
    assert digests[0].startswith("2 ")
    assert [row["world"] for row in read_rows(out, "start")] == [2]
    saved = read_rows(out, "checkpoint")[-1]
    assert (saved["world"], saved["step"]) == (2, 4)
    assert digests[0].endswith(saved["digest"])
    assert [row["step"] for row in read_rows(out, "train")] == [2, 4]  # one process writes
    for rank in (0, 1):
        text = (out / f"refused-{rank}").read_text()
        assert f"step 99: weights of rank {1 - rank} differ from those of rank {rank}" in text
        # A thread that outlives its group may abort the process as the interpreter ends.
        assert (out / f"left-{rank}").read_text() == ""


def test_the_command_trains_says_what_it_learnt_and_refuses_in_one_line(tmp_path, capsys):
    recipe = _written(tmp_path, steps=4, validation={"pairs": 1, "every_steps": 4})
    main_argv = [
        "train",
        "--recipe",
        str(recipe),
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as done:
        main([*main_argv, "--steps", "2"])
    assert done.value.code == 0
    printed = capsys.readouterr()
    assert "small: 2 steps; validation: " in printed.out
    assert "step 2 of 2: loss " in printed.err
    for argv, words in (
        (main_argv, "recipe changed: steps: was 2, is 4"),
        (["train"], "expected one of --preset NAME and --recipe FILE"),
        (["train", "--preset", "nosuch"], "training recipe 'nosuch': not found"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
