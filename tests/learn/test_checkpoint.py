import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import shifted, small

from tnav.errors import ConfigError, RunFileError
from tnav.learn.checkpoint import digest_of, load_checkpoint, save_checkpoint, save_weights
from tnav.learn.distributed import Group
from tnav.learn.step import build_state, train_step
from tnav.match.network import FeatureNet

CPU = torch.device("cpu")


def _trained(recipe, steps=3):
    state = build_state(recipe, CPU)
    for k in range(steps):
        train_step(state, shifted(k), recipe, Group())
    return state


def _all_tensors(state):
    found = {
        **state.net.state_dict(),
        **{f"a.{k}": v for k, v in state.average.state_dict().items()},
    }
    for name, weight in state.net.named_parameters():
        found |= {f"o.{part}.{name}": v for part, v in state.optimiser.state[weight].items()}
    return found


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_state_comes_back_whole_and_goes_on_to_the_same_bits(tmp_path, channels_last):
    recipe = small(channels_last=channels_last)
    state, path = _trained(recipe), tmp_path / "c.safetensors"
    state.bad_steps, state.bad_in_a_row = 2, 1
    save_checkpoint(path, state, recipe, 1, 77)
    again = build_state(recipe, CPU)
    assert digest_of(again.net) != digest_of(state.net)
    assert load_checkpoint(path, again, recipe, 1) == 77
    assert (again.step, again.bad_steps, again.bad_in_a_row) == (3, 2, 1)
    for name, tensor in _all_tensors(state).items():
        other = _all_tensors(again)[name]
        assert torch.equal(tensor, other), name
        assert tensor.stride() == other.stride(), name  # the fused step reads them side by side
    for k in range(3, 6):
        for one in (state, again):
            train_step(one, shifted(k), recipe, Group())
    assert digest_of(state.net) == digest_of(again.net)
    assert digest_of(state.average) == digest_of(again.average)
    assert digest_of(state.average) != digest_of(state.net)


def test_nothing_is_left_beside_the_file_and_a_failure_leaves_the_old_one(tmp_path, monkeypatch):
    recipe, path = small(), tmp_path / "c.safetensors"
    state = _trained(recipe, 1)
    save_checkpoint(path, state, recipe, 1, 0)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    train_step(state, shifted(9), recipe, Group())
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, state, recipe, 1, 0)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_another_recipe_or_world_is_refused_by_name(tmp_path):
    recipe, path = small(), tmp_path / "c.safetensors"
    save_checkpoint(path, _trained(recipe, 1), recipe, 2, 0)
    other = small(seeds={"loss": 5}, batch=2, workers=4)
    with pytest.raises(ConfigError) as found:
        load_checkpoint(path, build_state(other, CPU), other, 2)
    text = str(found.value)
    assert "recipe changed: batch: was 1, is 2" in text
    assert "recipe changed: seeds.loss: was 3, is 5" in text
    assert "workers" not in text
    assert "--fresh" in text
    with pytest.raises(ConfigError, match="trained by 2 processes, now 1"):
        load_checkpoint(path, build_state(recipe, CPU), recipe, 1)
    workers = small(workers=4)
    assert load_checkpoint(path, build_state(workers, CPU), workers, 2) == 0


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_damaged_file_is_one_clear_line(tmp_path, length):
    recipe, path = small(), tmp_path / "c.safetensors"
    save_checkpoint(path, _trained(recipe, 1), recipe, 1, 0)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(RunFileError, match="--fresh") as found:
        load_checkpoint(path, build_state(recipe, CPU), recipe, 1)
    assert len(str(found.value).splitlines()) == 1


def test_a_file_of_another_kind_or_with_other_tensors_is_refused(tmp_path):
    recipe, path = small(), tmp_path / "c.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(RunFileError, match="not a checkpoint of tnav-training/1"):
        load_checkpoint(path, build_state(recipe, CPU), recipe, 1)
    save_checkpoint(path, _trained(recipe, 1), recipe, 1, 0)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    short = {k: v for k, v in tensors.items() if k != "net.fine.bias"}
    save_file(short, path, about)
    with pytest.raises(RunFileError, match=r"net\.fine\.bias: not in both"):
        load_checkpoint(path, build_state(recipe, CPU), recipe, 1)
    save_file(tensors | {"net.fine.bias": torch.zeros(99)}, path, about)
    with pytest.raises(RunFileError, match=r"net\.fine\.bias: of another shape"):
        load_checkpoint(path, build_state(recipe, CPU), recipe, 1)


def test_weights_are_the_average_and_load_strictly(tmp_path):
    recipe, path = small(), tmp_path / "weights.safetensors"
    state = _trained(recipe)
    save_weights(path, state, recipe)
    network = FeatureNet(recipe.network)
    network.load_state_dict(load_file(path), strict=True)
    assert digest_of(network) == digest_of(state.average)
