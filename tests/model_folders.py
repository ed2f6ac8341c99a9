"""Small models with random weights, as folders, for tests."""

import hashlib

import torch
import yaml
from safetensors.torch import save

from tnav.match.network import FeatureNet, NetworkRecipe
from tnav.match.weights import weights_name

SMALL = NetworkRecipe(
    widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1), pyramid=8, half=8, fine=4, descriptor=8
)
BANDS = {
    "ground_sample_distance_m": [0.5, 12.0],
    "agl_m": [500.0, 15000.0],
    "sun_elevation_deg": [2.0, 31.0],
    "sun_azimuth_difference_deg": [0.0, 180.0],
    "map_coarser": [1.0, 8.0],
    "tilt_deg": [0.0, 30.0],
    "image_min_px": 256,
}


def small_network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureNet(SMALL)
        for name, tensor in network.state_dict().items():  # statistics too are not the first ones
            if name.endswith(("running_mean", "running_var")):
                tensor.uniform_(0.5, 1.5)
    return network.eval()


def write_model(folder, tensors=None, **changes):
    """A model folder as packing writes it; returns its contract as written."""
    folder.mkdir(parents=True, exist_ok=True)
    content = tensors if isinstance(tensors, bytes) else None
    content = content or save(tensors or dict(small_network().state_dict()))
    sha256 = hashlib.sha256(content).hexdigest()
    contract = {
        "name": folder.name,
        "network": SMALL.model_dump(mode="json"),
        "weights": weights_name(sha256),
        "sha256": sha256,
        "recipe_digest": "0" * 64,
        "recipe_sha256": "0" * 64,
        "trained": {"steps": 10, "pairs": 20, "date": "2026-11-23"},
        "input": BANDS,
    } | changes
    (folder / weights_name(sha256)).write_bytes(content)
    (folder / "model.yaml").write_text(yaml.safe_dump(contract, sort_keys=False))
    return contract
