"""A model's figures and its card: ``metrics.json`` as measured, ``CARD.md`` as people read it.

Every figure of the card stands between markers and is written from ``model.yaml`` or
``metrics.json``; `check_card` holds the two together.
"""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import ValidationError

from tnav.config import load_recipe
from tnav.errors import ConfigError
from tnav.evaluate.bench_match import measure_match
from tnav.evaluate.card_text import (
    SOLVED,
    Figure,
    Metrics,
    contract_table,
    metrics_table,
    training_table,
    words,
)
from tnav.evaluate.dataset import file_sha256
from tnav.evaluate.limits import Row
from tnav.evaluate.match_cases import SEED
from tnav.files import written_aside
from tnav.learn.journal import read_rows
from tnav.learn.recipe import TrainRecipe
from tnav.learn.train import RECIPE_FILE
from tnav.match.weights import (
    CONTRACT_FILE,
    DEFAULT_MODEL,
    METRICS_FILE,
    WEIGHTS_MAX_BYTES,
    default_model,
    load_model,
    models_dir,
    parameter_count,
    read_contract,
)

Say = Callable[[str], None]
CARD_FILE = "CARD.md"
_BLOCKS = ("contract", "training", "metrics")
_TERRAIN = (
    "All ground and images are SYNTHETIC below the resolution of LOLA LDEM_16; no real photograph."
)


def read_metrics(folder: Path) -> Metrics | None:
    """Read and check ``metrics.json``; None where the model was not measured yet.

    Raises:
        ConfigError: not strict JSON, not of this schema, or of other weights than the contract's.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return None
    try:
        metrics = Metrics.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "whole file"
        raise ConfigError(
            f"{path}: {field}: {first['msg'].lower()}; measure again with 'tnav eval {folder}'"
        ) from error
    expected = read_contract(folder).sha256
    if metrics.weights_sha256 != expected:
        raise ConfigError(
            f"{path}: of weights {metrics.weights_sha256[:8]}, but model.yaml names "
            f"{expected[:8]}; measure again with 'tnav eval {folder}'"
        )
    return metrics


def score_model(
    folder: Path,
    device: torch.device,
    *,
    quick: bool,
    pairs: int | None,
    scores: Path | None,
    say: Say,
    other_pairs: int | None = None,
) -> list[Row]:
    """Measure a model as `tnav bench match` does; writes ``metrics.json`` and the card's figures.

    Args:
        folder: of the model, which must be the one that the matcher uses.
        device: where scenes are rendered and matched.
        quick: few pairs of few regions.
        pairs: of each case; as `measure_match` has it when absent.
        scores: folder of scores of pairs; what is there already is not measured again.
        say: takes progress.
        other_pairs: of each case for the other methods.

    Raises:
        ConfigError: the model does not load, is not the one that the matcher uses, or has no card.
    """
    contract = load_model(folder, device).contract
    used = default_model(device)
    if used is None or used.contract.sha256 != contract.sha256:
        raise ConfigError(
            f"{folder}: is not the model that the matcher uses, {models_dir() / DEFAULT_MODEL}; "
            f"name it {DEFAULT_MODEL} and set TNAV_MODELS to the folder that holds it"
        )
    _filled(_read_card(folder), dict.fromkeys(_BLOCKS, ""))  # before the hours, not after them
    rows = measure_match(
        device, quick=quick, pairs=pairs, methods=None, say=say, out=scores,
        other_pairs=other_pairs,
    )  # fmt: skip
    counts = [row.n for row in rows if row.name.endswith(f": {SOLVED}")]
    if not counts:
        raise ConfigError(
            f"{folder}: not one pair was measured in the time of --quick; leave it out"
        )
    options = (" --quick" if quick else "") + (f" --pairs {pairs}" if pairs else "")
    options += f" --other-pairs {other_pairs}" if other_pairs else ""
    metrics = Metrics(
        model=contract.name,
        weights_sha256=contract.sha256,
        command=f"tnav eval models/{contract.name}{options}",
        terrain=_TERRAIN,
        seed=SEED,
        pairs=max(counts),
        device=str(device),
        versions={name: version(name) for name in ("tnav", "torch", "opencv-python-headless")},
        rows=tuple(Figure(**row.as_dict()) for row in rows),
    )
    with written_aside(folder / METRICS_FILE) as aside:
        aside.write_text(metrics.model_dump_json(indent=1) + "\n", encoding="utf-8")
    refresh_card(folder)
    return rows


def write_card(folder: Path) -> Path:
    """Write a model's card anew, figures and words."""
    contract = read_contract(folder)
    path = folder / CARD_FILE
    with written_aside(path) as aside:
        aside.write_text(_filled(words(contract.name), _blocks(folder)), encoding="utf-8")
    return path


def refresh_card(folder: Path) -> Path:
    """Write the figures of a card anew; its words stay as they are.

    Raises:
        ConfigError: no card, or a card without its markers.
    """
    text = _read_card(folder)
    path = folder / CARD_FILE
    with written_aside(path) as aside:
        aside.write_text(_filled(text, _blocks(folder)), encoding="utf-8")
    return path


def check_card(folder: Path) -> None:
    """Raises ConfigError where a card's figures are not those of the files beside it."""
    text = _read_card(folder)
    for name, expected in _blocks(folder).items():
        found = _block_pattern(name).search(text)
        if found is None:
            raise ConfigError(f"{folder / CARD_FILE}: no block '{name}'; expected its markers")
        if found.group(2) != expected + "\n":
            raise ConfigError(
                f"{folder / CARD_FILE}: the figures of block '{name}' are not those of the files "
                f"beside it; write them anew with 'tnav model card {folder}'"
            )


def verify_model(folder: Path) -> list[str]:
    """Check a model folder: hash, every tensor, recipe, size, and that the card is its files'.

    Returns:
        Lines that say what was found good.

    Raises:
        ConfigError: the first thing that is not.
    """
    contract = load_model(folder, "cpu").contract
    size = (folder / contract.weights).stat().st_size
    if size > WEIGHTS_MAX_BYTES:
        raise ConfigError(
            f"{folder / contract.weights}: {size / 1e6:.1f} MB, expected at most "
            f"{WEIGHTS_MAX_BYTES / 1e6:g} MB"
        )
    recipe_sha256 = file_sha256(folder / RECIPE_FILE)
    if recipe_sha256 != contract.recipe_sha256:
        raise ConfigError(
            f"{folder / RECIPE_FILE}: sha256 {recipe_sha256}, expected "
            f"{contract.recipe_sha256} by {CONTRACT_FILE}; not the recipe of these weights"
        )
    metrics = read_metrics(folder)
    check_card(folder)
    n = parameter_count(contract.network)
    return [
        f"weights: sha256 as stated, {n / 1e6:.2f} M parameters, all of them fit",
        "recipe: sha256 as stated",
        f"metrics: {'not measured yet' if metrics is None else f'{len(metrics.rows)} figures'}",
        "card: its figures are those of the files",
    ]


def _blocks(folder: Path) -> dict[str, str]:
    """The figures of a card by the name of their block."""
    contract = read_contract(folder)
    recipe = load_recipe(folder / RECIPE_FILE, TrainRecipe)
    tables = (
        contract_table(contract),
        training_table(contract, recipe, read_rows(folder, "validation")),
        metrics_table(read_metrics(folder), contract.name),
    )
    return dict(zip(_BLOCKS, tables, strict=True))


def _block_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: [^\n]* -->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)


def _filled(text: str, blocks: Mapping[str, str]) -> str:
    for name, content in blocks.items():
        found = list(_block_pattern(name).finditer(text))
        if len(found) != 1:
            raise ConfigError(
                f"{CARD_FILE}: block '{name}' is there {len(found)} times, expected its markers "
                "once; write the card anew with 'tnav model card --anew'"
            )
        text = f"{text[: found[0].start(2)]}{content}\n{text[found[0].end(2) :]}"
    return text


def _read_card(folder: Path) -> str:
    path = folder / CARD_FILE
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: missing; write it with 'tnav model card {folder}'") from error
