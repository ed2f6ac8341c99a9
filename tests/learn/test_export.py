"""A network leaves training as a model folder and as ONNX, and compiles without a graph break."""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from model_folders import SMALL, write_model

from tnav.config import load_recipe
from tnav.errors import ConfigError, RunFileError
from tnav.learn import export
from tnav.learn.cases import SceneRecipe
from tnav.learn.checkpoint import save_checkpoint, save_weights
from tnav.learn.export import (
    ONNX_INPUT,
    ONNX_OPSET,
    ONNX_OUTPUTS,
    calibrate,
    export_onnx,
    input_contract,
    pack,
)
from tnav.learn.pairs import PairRecipe
from tnav.learn.recipe import TrainRecipe
from tnav.learn.step import build_state
from tnav.match.network import FeatureNet, NetworkRecipe
from tnav.match.weights import DEFAULT_MODEL, load_model, models_dir

TESTS = Path(__file__).resolve().parents[1]
RECIPE = TrainRecipe(name="tiny", steps=900, batch=3, network=SMALL)
ROWS = (
    [{"kind": "start", "step": 0, "world": 2}, {"kind": "validation", "step": 0, "fine_px": 9.0}]
    + [{"kind": "train", "step": k, "total": 1.0 / k} for k in range(1, 901)]
    + [{"kind": "time", "step": 900, "seconds": 1.0}]
    + [{"kind": "validation", "step": 900, "fine_px": 0.5}]
)


@pytest.fixture
def run(tmp_path):
    """A run folder as training leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    state = build_state(RECIPE, torch.device("cpu"))
    with torch.no_grad():
        for weight in state.average.parameters():
            weight.add_(0.01)  # tells the average from the trained network
    state.step = 900
    save_weights(folder / "weights.safetensors", state, RECIPE)
    save_checkpoint(folder / "checkpoint.safetensors", state, RECIPE, 2, 0)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder, state


def test_a_run_is_packed_whole(run, tmp_path):
    folder, state = run
    packed = pack(folder, "frigoris-s", tmp_path / "models")
    assert packed == tmp_path / "models" / "frigoris-s"
    model = load_model(packed, "cpu")
    for name, tensor in state.average.folded().state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name
    assert model.contract.recipe_digest == RECIPE.digest()
    assert (model.contract.trained.steps, model.contract.trained.pairs) == (900, 900 * 3 * 2)
    assert load_recipe(packed / "recipe.yaml", TrainRecipe) == RECIPE
    names = sorted(path.name for path in packed.iterdir())
    assert names == sorted(["log.jsonl", "model.yaml", "recipe.yaml", model.contract.weights])
    assert [path.name for path in packed.parent.iterdir()] == ["frigoris-s"]  # nothing aside


def test_the_log_keeps_its_ends_and_loses_its_middle(run, tmp_path):
    packed = pack(run[0], "a", tmp_path)
    rows = [json.loads(line) for line in (packed / "log.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert len(steps) == 300  # every third of 900 is the most that 400 hold
    assert steps[-1] == 900
    assert steps == sorted(steps)
    assert {row["kind"] for row in rows} == {"start", "validation", "train"}
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [0, 900]


def test_a_name_is_taken_once(run, tmp_path):
    packed = pack(run[0], "a", tmp_path)
    (packed / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match="is there already"):
        pack(run[0], "a", tmp_path)
    pack(run[0], "a", tmp_path, overwrite=True)
    assert not (packed / "metrics.json").exists()  # of other weights
    with pytest.raises(ConfigError, match=r"model A b: name: .*pattern"):
        pack(run[0], "A b", tmp_path)


def test_a_run_not_at_its_end_is_packed_on_demand_only(run, tmp_path):
    folder, state = run
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has not come to its end.*--unfinished"):
        pack(folder, "a", tmp_path)
    model = load_model(pack(folder, "a", tmp_path, unfinished=True), "cpu")
    for name, tensor in state.average.folded().state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name
    (folder / "checkpoint.safetensors").unlink()
    with pytest.raises(RunFileError, match=r"weights.safetensors: missing"):
        pack(folder, "b", tmp_path)


def test_a_calibration_goes_into_the_weights(run, tmp_path):
    packed = pack(run[0], "a", tmp_path)
    (packed / "metrics.json").write_text("{}")
    before = load_model(packed, "cpu")
    calibrate(packed, (0.5, 0.25, 0.75))
    after = load_model(packed, "cpu")
    for name, tensor in before.network.state_dict().items():
        same = torch.equal(after.network.state_dict()[name], tensor)
        assert same == (name != "calibration"), name
    assert after.network.calibration.tolist() == [0.5, 0.25, 0.75]
    assert after.contract.sha256 != before.contract.sha256
    assert [path.name for path in packed.glob("weights*")] == [after.contract.weights]
    assert not (packed / "metrics.json").exists()  # of other weights
    (packed / "metrics.json").write_text("{}")
    calibrate(packed, (0.5, 0.25, 0.75))  # changes nothing
    assert load_model(packed, "cpu").contract == after.contract
    assert (packed / "metrics.json").exists()
    with pytest.raises(ConfigError, match="three finite numbers"):
        calibrate(packed, (0.5, float("nan"), 0.75))


def test_files_of_two_runs_and_damaged_files(run, tmp_path):
    folder, _ = run
    other = RECIPE.model_copy(update={"batch": 4})
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    (mixed / "recipe.yaml").write_text(yaml.safe_dump(other.model_dump(mode="json")))
    with pytest.raises(ConfigError, match="expected weights and recipe of one run"):
        pack(mixed, "a", tmp_path)
    (folder / "weights.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(RunFileError, match="not a safetensors file"):
        pack(folder, "a", tmp_path)
    (folder / "log.jsonl").write_text("{\n")
    with pytest.raises(RunFileError, match="not JSON"):
        pack(folder, "a", tmp_path)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / ".a.part").exists()


def test_weights_above_five_megabytes_are_refused(tmp_path, monkeypatch, run):
    size = (run[0] / "weights.safetensors").stat().st_size
    monkeypatch.setattr(export, "WEIGHTS_MAX_BYTES", size)
    pack(run[0], "a", tmp_path)
    monkeypatch.setattr(export, "WEIGHTS_MAX_BYTES", size - 1)
    with pytest.raises(ConfigError, match="train a smaller network"):
        pack(run[0], "b", tmp_path)


def test_the_shipped_architecture_fits_a_model_folder():
    """At most a million parameters and 5 MB, with the running statistics."""
    network = FeatureNet(NetworkRecipe())
    assert sum(p.numel() for p in network.parameters()) <= 1_000_000
    assert sum(4 * t.numel() for t in network.state_dict().values()) < 4_900_000


def test_the_contract_is_that_of_the_pairs():
    """Ground sample distance at the nadir is height over focal length."""
    recipe = PairRecipe(
        focal_px=1000.0, agl_m=(500.0, 20000.0), sun_elevation_deg=(3.0, 40.0), coarser=(2.0, 6.0)
    )
    bands = input_contract(recipe)
    assert bands.ground_sample_distance_m == (0.5, 20.0)
    assert bands.agl_m == (500.0, 20000.0)
    assert bands.sun_elevation_deg == (3.0, 40.0)
    assert bands.map_coarser == (2.0, 6.0)
    assert bands.sun_azimuth_difference_deg == (0.0, 180.0)
    assert bands.image_min_px == 256
    assert input_contract(SceneRecipe()).tilt_deg == (0.0, 30.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped model as ONNX, or a small one where none is shipped."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("onnx")
    write_model(folder / "small")
    shipped = models_dir() / DEFAULT_MODEL
    model = load_model(shipped if shipped.is_dir() else folder / "small", "cpu")
    return model, export_onnx(model, folder / "out" / "model.onnx")


def test_onnx_states_its_interface(exported):
    import onnx

    model, done = exported
    graph = onnx.load(done.path)
    onnx.checker.check_model(graph, full_check=True)
    assert done.size_bytes == done.path.stat().st_size
    assert [opset.version for opset in graph.opset_import if opset.domain == ""] == [ONNX_OPSET]
    (image,) = graph.graph.input
    dims = image.type.tensor_type.shape.dim
    assert image.name == ONNX_INPUT
    assert dims[1].dim_value == 1
    assert all(dims[k].dim_param for k in (0, 2, 3))
    names = [output.name for output in graph.graph.output]
    assert names == list(ONNX_OUTPUTS) == ["fine", "log_sigma", "descriptor", "keypoint"]
    about = {entry.key: entry.value for entry in graph.metadata_props}
    assert about["weights_sha256"] == model.contract.sha256
    assert json.loads(about["input"]) == model.contract.input.model_dump(mode="json")


@pytest.mark.parametrize("shape", [(1, 1, 80, 176), (2, 1, 256, 96)])
def test_onnxruntime_agrees_with_torch(exported, shape):
    runtime = pytest.importorskip("onnxruntime")
    model, done = exported
    image = 1000 * torch.rand(shape, generator=torch.Generator().manual_seed(7)) ** 2
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {ONNX_INPUT: image.numpy()})
    for ours, theirs in zip(model.network(image), found, strict=True):
        bound = 1e-4 * max(1.0, float(ours.abs().max()))
        torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=bound, rtol=0)
    assert done.largest_difference is not None
    assert done.largest_difference <= 1e-4


def test_a_runtime_that_disagrees_leaves_no_file(exported, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    model, done = exported

    class Copied:  # what was exported before, in place of a second tracing
        class model:
            metadata_props = {}

        @staticmethod
        def save(path):
            shutil.copy(done.path, path)

    monkeypatch.setattr(export, "_traced", lambda network: Copied)
    assert export_onnx(model, tmp_path / "same.onnx").largest_difference <= 1e-4
    other = replace(model, network=copy.deepcopy(model.network))
    other.network.fine.bias[0] += float(model.network.fine.bias.abs().max()) + 1.0
    with pytest.raises(ConfigError, match="differs from torch by"):
        export_onnx(other, tmp_path / "other.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    write_model(tmp_path / "a")
    model = load_model(tmp_path / "a", "cpu")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"^{package}: not installed.*tnav\[export\]"):
        export_onnx(model, tmp_path / "a.onnx")


_COMPILED = """
import sys, torch
from model_folders import small_network
network = small_network().requires_grad_(False)
image = torch.rand(1, 1, 64, 96)
for backend in sys.argv[1:]:
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for ours, theirs in zip(compiled(image), network(image), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
"""


def _compiles(*backends):
    """In a process of its own: run-time checks of types, which tests add, break the graph."""
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED, *backends],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stderr


def test_the_network_compiles_in_one_graph():
    _compiles("aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_the_network_compiles_to_machine_code():
    _compiles("inductor")
