"""What a card says is what was measured, of the weights that lie beside it."""

import hashlib
import json

import pytest
import torch
import yaml
from model_folders import SMALL, write_model

from tnav.cli import main
from tnav.errors import ConfigError
from tnav.evaluate import model_card
from tnav.evaluate.limits import Row
from tnav.evaluate.match_cases import CASES
from tnav.evaluate.match_scores import PairScore
from tnav.evaluate.match_table import case_rows, wrong_rows
from tnav.evaluate.model_card import (
    check_card,
    read_metrics,
    refresh_card,
    score_model,
    verify_model,
    write_card,
)
from tnav.learn.recipe import TrainRecipe
from tnav.match import weights
from tnav.match.weights import models_dir

CPU = torch.device("cpu")
RECIPE = TrainRecipe(name="tiny", steps=4000, batch=3, network=SMALL)
LOG = [
    {"kind": "start", "step": 0, "world": 1},
    {"kind": "validation", "step": 0, "accuracy": 0.0125, "fine_px": 9.0},
    {"kind": "validation", "step": 10, "accuracy": 0.5, "fine_px": 0.75},
]
SHIPPED = sorted(path.parent for path in models_dir().glob("*/model.yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model with its card, the one that the matcher uses."""
    monkeypatch.setenv("TNAV_MODELS", str(tmp_path))
    weights._loaded.cache_clear()
    recipe = yaml.safe_dump(RECIPE.model_dump(mode="json")).encode()
    model = tmp_path / "frigoris-s"
    write_model(model, recipe_sha256=hashlib.sha256(recipe).hexdigest())
    (model / "recipe.yaml").write_bytes(recipe)
    (model / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    write_card(model)
    yield model
    weights._loaded.cache_clear()


def _rows():
    """Rows as the benchmark makes them, of scores that are made up."""
    case = CASES[0]
    scores = [
        PairScore(case.slug, k, method, "", "mare", status, grid_px, (0.125, 0.25), 0.5)
        for method, solved in (("tnav", 3), ("sift", 2))
        for k in range(4)
        for status, grid_px in [("ok", 0.5) if k < solved else ("no_consensus", None)]
    ]
    time = Row("time of a pair, one thread: tnav", 0.345, "s", None, None, 9, "cpu")
    return [time, *case_rows(case, scores, "cpu"), *wrong_rows(scores, "cpu")]


@pytest.fixture
def measured(folder, monkeypatch):
    """The same, with figures; returns what the benchmark was asked for."""
    asked = {}

    def measure(device, **options):
        asked.update(options)
        return _rows()

    monkeypatch.setattr(model_card, "measure_match", measure)
    rows = score_model(folder, CPU, quick=True, pairs=4, scores=None, say=lambda text: None)
    assert rows == _rows()
    return asked


def test_metrics_hold_every_row_and_how_to_repeat_it(folder, measured):
    assert measured["methods"] is None  # all that are at hand
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["rows"] == [row.as_dict() for row in _rows()]
    assert metrics["command"] == "tnav eval models/frigoris-s --quick --pairs 4"
    assert metrics["pairs"] == 4
    assert metrics["versions"]["torch"] == torch.__version__
    assert "SYNTHETIC" in metrics["terrain"]
    contract = yaml.safe_load((folder / "model.yaml").read_text())
    assert metrics["weights_sha256"] == contract["sha256"]


def test_the_card_shows_every_figure(folder, measured):
    text = (folder / "CARD.md").read_text()
    case = CASES[0].name
    (ours,) = (line for line in text.splitlines() if line.startswith(f"| {case} | tnav |"))
    assert "| 75 % (19.4 to 99.4); must be >= 100: **no** |" in ours  # Clopper and Pearson, 3 of 4
    assert "100 %; must be >= 99: yes" in ours
    assert "0.188 px; must be < 0.25: yes | 4 |" in ours
    (theirs,) = (line for line in text.splitlines() if line.startswith(f"| {case} | sift |"))
    assert "| 50 % (6.8 to 93.2) | 100 % |" in theirs
    assert "| time of a pair, one thread: tnav | 0.345 s | 9 |" in text
    assert "| wrong poses called good: tnav | 0 poses" in text
    assert "| validation: fine_px | 9 before, 0.75 after |" in text
    assert "| steps | 10 of 4,000 |" in text
    assert "| Sun elevation | 2 to 31 deg |" in text
    for words in ("SYNTHETIC", "no real photograph was measured", "No time on a GPU was measured"):
        assert words in text


def test_a_card_is_its_files(folder, measured):
    check_card(folder)
    card = folder / "CARD.md"
    text = card.read_text()
    for old, new in (("0.188 px", "0.187 px"), ("2 to 31 deg", "1 to 31 deg"), ("0.75", "0.7")):
        assert old in text
        card.write_text(text.replace(old, new, 1))
        with pytest.raises(ConfigError, match="are not those of the files"):
            check_card(folder)
    card.write_text(text.replace("# frigoris-s", "# Frigoris, small"))  # words are people's
    check_card(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["rows"][0]["value"] = 0.4
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ConfigError, match="block 'metrics'"):
        check_card(folder)
    refresh_card(folder)
    check_card(folder)
    assert "# Frigoris, small" in card.read_text()
    write_card(folder)
    assert card.read_text().startswith("# frigoris-s\n")


def test_a_card_without_its_markers(folder):
    card = folder / "CARD.md"
    card.write_text(card.read_text().replace("<!-- end of metrics -->", ""))
    with pytest.raises(ConfigError, match="block 'metrics' is there 0 times"):
        refresh_card(folder)
    with pytest.raises(ConfigError, match="no block 'metrics'"):
        check_card(folder)
    card.unlink()
    with pytest.raises(ConfigError, match=r"CARD.md: missing; .*tnav model card"):
        check_card(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m | {"rows": []}, "rows: .*at least 1"),
        (lambda m: m | {"speed": 1}, "speed: extra inputs"),
        (lambda m: m | {"weights_sha256": "f" * 64}, "of weights ffffffff, but model.yaml names"),
        (lambda m: "{", "whole file: invalid json"),
    ],
)
def test_metrics_that_are_not_its_own(folder, measured, change, words):
    path = folder / "metrics.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(ConfigError, match=words):
        read_metrics(folder)


def test_only_the_model_that_the_matcher_uses_is_measured(folder, tmp_path):
    write_model(tmp_path / "other", name="other", trained={"steps": 1, "pairs": 1})
    (tmp_path / "frigoris-s" / "model.yaml").rename(tmp_path / "aside.yaml")
    with pytest.raises(ConfigError, match="is not the model that the matcher uses"):
        score_model(
            tmp_path / "other", CPU, quick=True, pairs=1, scores=None, say=lambda text: None
        )


def test_verify_says_what_is_good_and_stops_at_what_is_not(folder, measured):
    lines = verify_model(folder)
    assert lines[2] == f"metrics: {len(_rows())} figures"
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("batch: 3", "batch: 4"))
    with pytest.raises(ConfigError, match="not the recipe of these weights"):
        verify_model(folder)


def test_commands(folder, capsys, monkeypatch, tmp_path):
    def call(*argv):
        main_status = 0
        try:
            main(list(argv))
        except SystemExit as stop:
            main_status = stop.code
        printed = capsys.readouterr()
        return main_status, printed.out, printed.err

    status, out, _ = call("model", "info", "frigoris-s")
    assert status == 0
    assert "sun_elevation_deg: 2 to 31" in out
    assert "image_min_px: 256 and more" in out
    status, out, _ = call("model", "verify", "frigoris-s")
    assert (status, "not measured yet" in out) == (0, True)
    status, _, err = call("model", "info", "frigoris-m")
    assert status == 2
    assert err.startswith("error: model 'frigoris-m': no such model")
    status, _, err = call("eval", str(tmp_path), "--quick")
    assert status == 2
    assert "go with a model's folder" in err
    monkeypatch.setattr(model_card, "measure_match", lambda device, **options: _rows())
    status, out, _ = call("eval", str(folder), "--json", "--device", "cpu")
    assert status == 1  # three of four is less than all
    assert json.loads(out) == [row.as_dict() for row in _rows()]
    status, out, _ = call("model", "card", "frigoris-s", "--anew")
    assert (status, out) == (0, f"{folder / 'CARD.md'}\n")
    assert call("model", "verify", str(folder))[0] == 0


@pytest.mark.parametrize("shipped", SHIPPED, ids=[path.name for path in SHIPPED])
def test_shipped_models_are_whole_and_their_cards_true(shipped):
    verify_model(shipped)
    assert read_metrics(shipped) is not None
