"""The loop, on pairs that cost nothing; rendered ones are in test_train_processes."""

import math

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from training import endless, shifted, small

import tnav.learn.train as loop
from tnav.errors import ConfigError, RunFileError
from tnav.images import read_image
from tnav.learn.checkpoint import digest_of
from tnav.learn.distributed import Group, TrainingError
from tnav.learn.journal import Journal, read_rows
from tnav.learn.recipe import load_training
from tnav.learn.step import build_state, seeded, train_step
from tnav.learn.train import train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def pairs_for_nothing(monkeypatch):
    monkeypatch.setattr(loop, "batches", endless)


def _curve(folder):
    return read_rows(folder, "train"), read_rows(folder, "validation")


def _poisoned(steps):
    """Pairs of which some steps' have a NaN in them."""

    def found(recipe, split, seed, first_index=0, batch=1, workers=0, rank=0, world=1):
        for k, pairs in enumerate(endless(recipe, split, seed, first_index, batch, 0, rank, world)):
            if split == "train" and first_index // batch + k in steps:
                pairs.view[0, 0, 40, 40] = math.nan
            yield pairs

    return found


def test_a_run_leaves_recipe_log_events_figures_checkpoint_and_weights(tmp_path):
    looks = []
    recipe = small(steps=9, optimiser={"learning_rate": 5e-3, "average_decay": 0.5})
    result = train(recipe, tmp_path, CPU, show=looks.append)
    assert load_training(str(tmp_path / "recipe.yaml")) == recipe
    rows, seen = _curve(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9] == [look.step for look in looks]
    assert [row["step"] for row in seen] == [0, 4, 8, 9]
    assert [row["step"] for row in read_rows(tmp_path, "checkpoint")] == [4, 8, 9]
    start = read_rows(tmp_path, "start")
    assert [(r["step"], r["world"], r["recipe_digest"]) for r in start] == [(0, 1, recipe.digest())]
    assert seen[-1]["total"] < seen[0]["total"]  # it learns
    assert result.first["total"] == seen[0]["total"]
    assert result.last["total"] == seen[-1]["total"]
    assert [p.name for p in sorted((tmp_path / "figures").iterdir())] == [
        "epoch-001.png",
        "epoch-002.png",
    ]
    assert read_image(tmp_path / "figures" / "epoch-002.png").shape[-1] >= 2 * 96
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"train/total", b"validation/accuracy", b"validation/matches"):
        assert tag in content
    weights = load_file(result.weights)
    average = build_state(recipe, CPU).average
    average.load_state_dict(weights, strict=True)
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_a_run_that_is_stopped_and_taken_up_ends_on_the_same_bits(tmp_path):
    recipe = small(uses=3)
    whole = train(recipe, tmp_path / "whole", CPU)
    asked = iter([False, True])
    part = train(recipe, tmp_path / "part", CPU, stop=lambda: next(asked))
    assert part.step == 4
    assert not part.weights.exists()
    again = train(recipe, tmp_path / "part", CPU)
    assert again.digest == whole.digest
    assert _curve(tmp_path / "part") == _curve(tmp_path / "whole")
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    assert again.first == whole.first
    # and once it is done it stays as it is
    assert train(recipe, tmp_path / "part", CPU).digest == whole.digest
    assert _curve(tmp_path / "part") == _curve(tmp_path / "whole")


def test_seeds_decide(tmp_path):
    digests = {
        name: train(small(steps=2, seeds=seeds), tmp_path / name, CPU).digest
        for name, seeds in (("a", {}), ("b", {}), ("c", {"weights": 8}), ("d", {"loss": 8}))
    }
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3
    draws = [seeded(*key).initial_seed() for key in ((1, 2, 3), (1, 3, 2), (1, 2, 4), (12, 3))]
    assert len(set(draws)) == 4


def test_rows_after_the_checkpoint_are_cut_and_a_short_log_is_refused(tmp_path):
    recipe = small()
    asked = iter([False, True])
    train(recipe, tmp_path, CPU, stop=lambda: next(asked))
    log = tmp_path / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"kind": "train", "step": 6, "total": 1.0}\n{"kind": "tra')
    train(recipe, tmp_path, CPU)
    rows, _ = _curve(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    log.write_bytes(whole[:-20])
    with pytest.raises(RunFileError, match="not of one run; start over with --fresh"):
        train(recipe, tmp_path, CPU)
    assert train(recipe, tmp_path, CPU, fresh=True).step == 12
    assert len(read_rows(tmp_path, "start")) == 1


def test_a_step_without_a_finite_gradient_changes_nothing():
    recipe = small()
    state = build_state(recipe, CPU)
    assert train_step(state, shifted(0), recipe, Group())["ok"] == 1
    before = {k: v.clone() for k, v in state.net.state_dict().items()}
    moments = [{k: v.clone() for k, v in s.items()} for s in state.optimiser.state.values()]
    bad = shifted(1)
    bad.image[0, 0, 3, 3] = math.nan
    assert train_step(state, bad, recipe, Group())["ok"] == 0
    assert state.step == 2
    for name, value in state.net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, before[name]), name
    for now, then in zip(state.optimiser.state.values(), moments, strict=True):
        assert all(torch.equal(now[k], then[k]) for k in then)
    assert all(torch.isfinite(v).all() for v in state.average.state_dict().values())
    assert train_step(state, shifted(2), recipe, Group())["ok"] == 1
    assert not torch.equal(state.net.state_dict()["fine.weight"], before["fine.weight"])


def test_bad_steps_are_counted_and_just_enough_of_them_are_borne(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "batches", _poisoned({1, 3, 4, 5, 8}))  # 3 in a row, over a look
    result = train(small(), tmp_path, CPU)
    assert (result.step, result.bad_steps) == (12, 5)
    rows, seen = _curve(tmp_path)
    assert [row["bad_steps"] for row in rows] == [1, 2, 4, 4, 5, 5]
    assert math.isfinite(rows[0]["total"])
    assert "total" not in rows[2]  # no good step: no figures, and none that would be wrong
    assert all(math.isfinite(row["total"]) for row in seen)


def test_one_bad_step_too_many_stops_with_its_step_and_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "batches", _poisoned({5, 6, 7, 8}))
    with pytest.raises(TrainingError) as found:
        train(small(batch=2), tmp_path, CPU)
    text = str(found.value)
    assert len(text.splitlines()) == 1
    assert text.startswith("step 5: loss or gradient not finite")
    assert "4 steps in a row, expected at most 3" in text
    assert "pairs 10 to 17 of seed 2" in text


def test_a_folder_is_trained_in_by_one_and_results_are_not_started_over(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="another process trains"):
        train(small(), tmp_path, CPU)
    train(small(steps=2), tmp_path, CPU)
    with pytest.raises(ConfigError, match="recipe changed: steps: was 2, is 4"):
        train(small(steps=4), tmp_path, CPU)
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.raises(RunFileError, match="no checkpoint to resume; start over with --fresh"):
        train(small(steps=4), tmp_path, CPU)
    (tmp_path / "mine.txt").write_text("kept")
    assert train(small(steps=4), tmp_path, CPU, fresh=True).step == 4
    assert (tmp_path / "mine.txt").exists()


def test_rows_are_strict_json(tmp_path):
    journal = Journal(tmp_path, 0, 0)
    journal.row("train", 1, {"total": math.nan, "fine": 2.0, "name": "x"})
    assert journal.length_bytes() == (tmp_path / "log.jsonl").stat().st_size
    journal.close()
    assert read_rows(tmp_path, "train") == [
        {"kind": "train", "step": 1, "total": None, "fine": 2.0, "name": "x"}
    ]
    (tmp_path / "log.jsonl").write_text("{")
    with pytest.raises(RunFileError, match="not JSON"):
        read_rows(tmp_path, "train")


def test_same_weights_whatever_the_layout_of_the_digest():
    one, other = (build_state(small(channels_last=c), CPU).net for c in (True, False))
    assert digest_of(one) == digest_of(other)
