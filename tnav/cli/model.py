"""Commands on trained networks: `tnav model`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tnav.match.weights import ModelContract

model_app = typer.Typer(
    help="Trained networks: pack, check, describe and export them.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="name in the models' folder, or a model's own folder")]


@model_app.command()
def info(name: Name) -> None:
    """What a model is, and the input that it was trained for."""
    from tnav.match.weights import load_model, parameter_count

    contract = load_model(name, "cpu").contract
    for line in _description(contract):
        print(line)
    print(f"parameters: {parameter_count(contract.network):,}")
    print("outside of these bands it still answers; tnav warns once and records it in the result")


@model_app.command()
def verify(name: Name) -> None:
    """Check a model: hash, every tensor, recipe, and that its card is its files'."""
    from tnav.evaluate.model_card import verify_model
    from tnav.match.weights import model_folder

    folder = model_folder(name)
    for line in verify_model(folder):
        print(line)
    print(f"{folder}: ok")


@model_app.command()
def export(name: Name, out: Annotated[Path, typer.Option(help="ONNX file to write")]) -> None:
    """Write a model as ONNX for other runtimes; onnxruntime, where installed, must agree."""
    from tnav.learn.export import ONNX_OPSET, export_onnx
    from tnav.match.weights import load_model

    done = export_onnx(load_model(name, "cpu"), out)
    print(f"{done.path}: {done.size_bytes / 1e6:.1f} MB, opset {ONNX_OPSET}")
    if done.largest_difference is None:
        print("not compared: onnxruntime is not installed (pip install 'tnav[export]')")
    else:
        print(f"onnxruntime and torch differ by {done.largest_difference:.1e} at most")


@model_app.command()
def pack(
    run: Annotated[Path, typer.Argument(help="folder that 'tnav train' wrote")],
    name: Annotated[str, typer.Option(help="of the model")],
    to: Annotated[Path | None, typer.Option(help="folder of models; default: TNAV_MODELS")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace that model")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="take the checkpoint of a run not at its end")
    ] = False,
) -> None:
    """Make a model of a training run: weights, contract, recipe, log and card."""
    from tnav.evaluate.model_card import write_card
    from tnav.learn.export import pack as make
    from tnav.match.weights import models_dir

    folder = make(run, name, to or models_dir(), overwrite=overwrite, unfinished=unfinished)
    write_card(folder)
    print(f"{folder}: packed; measure it with 'tnav eval {folder}'")


@model_app.command()
def calibrate(
    name: Name,
    pairs: Annotated[int, typer.Option(min=1, help="of each case, on the validation regions")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Fit how sure a model's matches are, and put it into its weights; figures are then due again.

    The size of a covariance is exp(a) curvature^b stated^c; a, b and c are printed.
    """
    from tnav.evaluate.match_covariance import fit_calibration
    from tnav.evaluate.model_card import refresh_card
    from tnav.evaluate.scenario import resolve_device
    from tnav.learn.export import calibrate as put
    from tnav.match.weights import load_model, model_folder, read_contract

    folder, where = model_folder(name), resolve_device(device)
    network = load_model(folder, where).network
    a, b, c = fit_calibration(network, where, pairs, lambda text: print(text, file=sys.stderr))
    put(folder, (a, b, c))
    refresh_card(folder)
    print(f"a {a:.4f}, b {b:.4f}, c {c:.4f}")
    print(f"{folder}: {read_contract(folder).weights}; measure it with 'tnav eval {folder}'")


@model_app.command()
def card(
    name: Name,
    anew: Annotated[bool, typer.Option("--anew", help="its words too, not only figures")] = False,
) -> None:
    """Write the figures of a model's card from the files beside it."""
    from tnav.evaluate.model_card import refresh_card, write_card
    from tnav.match.weights import model_folder

    print((write_card if anew else refresh_card)(model_folder(name)))


def _description(contract: "ModelContract") -> list[str]:
    trained, bands = contract.trained, contract.input
    lines = [
        f"name: {contract.name}",
        f"weights: {contract.weights}, sha256 {contract.sha256}",
        f"trained: {trained.steps:,} steps, {trained.pairs:,} rendered pairs, "
        f"ended {trained.date or 'at a date not stated'}, recipe {contract.recipe_digest[:8]}",
        "input, as trained for:",
    ]
    for field, band in bands:
        text = f"{band[0]:g} to {band[1]:g}" if isinstance(band, tuple) else f"{band} and more"
        lines.append(f"  {field}: {text}")
    return lines
