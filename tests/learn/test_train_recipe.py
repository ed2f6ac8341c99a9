import hashlib
import itertools
import json
import math

import pytest
import torch
import yaml
from training import SMALL, small

from tnav.config import load_recipe
from tnav.errors import ConfigError
from tnav.learn.recipe import OptimiserRecipe, TrainRecipe, load_training
from tnav.learn.step import build_state
from tnav.match.network import FeatureNet


def test_learning_rate_rises_straight_and_falls_as_half_a_cosine():
    options = OptimiserRecipe(learning_rate=0.5, warmup_share=0.1, final_share=0.2)
    rate = [options.learning_rate_at(k, 101) for k in range(101)]
    rise = torch.tensor(rate[:11]).diff()
    assert rate[0] == pytest.approx(0.5 / 11.1)
    assert torch.allclose(rise[:10], rise[:1].expand(10))  # straight: 10.1 steps of it
    assert max(rate) == pytest.approx(0.5, rel=1e-3)
    # halfway down the cosine lies the mean of peak and end
    middle = 10.1 + (100 - 10.1) / 2
    assert options.learning_rate_at(55, 101) == pytest.approx(
        0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi * (55 - 10.1) / 89.9))
    )
    assert (rate[55] + rate[int(2 * middle) - 55]) / 2 == pytest.approx(0.3, rel=5e-3)
    assert rate[100] == pytest.approx(0.2 * 0.5)
    assert all(a >= b for a, b in itertools.pairwise(rate[11:]))


def test_decay_of_the_average_is_short_at_first():
    options = OptimiserRecipe(average_decay=0.99)
    assert options.average_decay_at(0) == pytest.approx(0.1)
    assert options.average_decay_at(890) == pytest.approx(891 / 900)  # the last under the bound
    assert options.average_decay_at(891) == 0.99
    assert options.average_decay_at(10**6) == 0.99


@pytest.mark.parametrize("preset", ["quick", "frigoris-s"])
def test_presets_fit_and_their_networks_are_small(preset):
    recipe = load_training(preset)
    assert recipe.name == preset
    network = build_state(recipe, torch.device("cpu")).net
    assert isinstance(network, FeatureNet)
    assert sum(w.numel() for w in network.parameters()) <= 1e6
    for split in ("train", "validation"):
        assert recipe.pairs_of(split).width_px == recipe.pairs.width_px


def test_regions_go_to_the_split_that_they_belong_to():
    recipe = small()
    assert recipe.pairs_of("train").regions == ("imbrium-north",)
    assert recipe.pairs_of("validation").regions == ("frigoris-west",)
    only = small(pairs={**SMALL["pairs"], "regions": ["imbrium-north"]})
    with pytest.raises(ConfigError, match=r"imbrium-north: none is of split 'validation'"):
        only.pairs_of("validation")


def test_errors_name_file_and_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\nsteps: 0\nbatchsize: 2\noptimiser:\n  learning_rate: -1\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError) as found:
        load_training(str(path))
    lines = str(found.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith(f"{path}:2: steps:") for line in lines)
    assert any(line.startswith(f"{path}:3: batchsize: unknown key") for line in lines)
    assert any(line.startswith(f"{path}:5: optimiser.learning_rate:") for line in lines)
    with pytest.raises(ConfigError, match=r"'nosuch': not found; known: .*quick"):
        load_training("nosuch")


@pytest.mark.parametrize("field", ["epoch_steps", "checkpoint_steps"])
def test_looks_at_a_run_are_looks_at_the_log(field):
    with pytest.raises(ValueError, match=f"{field} 5: expected a multiple of log_steps, 2"):
        small(**{field: 5})
    with pytest.raises(ValueError, match="every_steps 7: expected a multiple"):
        small(validation={"every_steps": 7})
    assert small(**{field: 6})


def test_digest_holds_what_a_weight_feels_and_nothing_else():
    recipe = small()
    canonical = recipe.model_dump(mode="json")
    for free in ("workers", "checkpoint_steps", "checkpoint_minutes"):
        del canonical[free]
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    assert recipe.digest() == hashlib.sha256(text.encode()).hexdigest()
    assert small(workers=3, checkpoint_steps=2).digest() == recipe.digest()
    for change in ({"steps": 13}, {"batch": 2}, {"seeds": {"loss": 9}}, {"precision": "float32"}):
        assert small(**change).digest() != recipe.digest()


def test_changed_fields_are_named_with_both_values():
    recipe = small(optimiser={"learning_rate": 2e-3}, workers=2)
    before = small().model_dump(mode="json")
    assert recipe.changed_fields(before) == ["optimiser.learning_rate: was 0.001, is 0.002"]
    del before["precision"]  # an older recipe, from before there was a choice: the default
    assert len(recipe.changed_fields(before)) == 1
    before["momentum"] = 0.9
    lines = recipe.changed_fields(before)
    assert "momentum: was 0.9, is not there" in lines


def test_a_recipe_survives_being_written(tmp_path):
    path = tmp_path / "recipe.yaml"
    recipe = small()
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    again = load_recipe(path, TrainRecipe)
    assert again == recipe
    assert again.digest() == recipe.digest()


def test_steps_stretch_the_schedule_and_are_checked():
    assert small().with_steps(40).steps == 40
    with pytest.raises(ConfigError, match="--steps 0: expected at least 1"):
        small().with_steps(0)
