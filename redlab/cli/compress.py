"""The command ``redlab compress``: a network in, a smaller one out, and what that did to it."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from redlab.cli.completion import complete_criteria, complete_datasets, complete_networks, complete_recipes
from redlab.cli.export import check_precision, write
from redlab.cli.opening import called, check_network, code_of_folder, note_example
from redlab.cli.recipes import SCORE_IMAGES, check_recipe, needs_images, steps_of
from redlab.cli.terminal import argument, exits, option, say, stop
from redlab.zoo.dataset_names import check_at_hand, has_training, own_dataset
from redlab.zoo.names import architecture_of, check_target

if TYPE_CHECKING:
    from torch import nn

    from redlab.compression.pipeline import Step
    from redlab.network.result import Result
    from redlab.zoo.datasets import ImageArray
    from redlab.zoo.image_folder import ImageFolder

    Images = ImageArray | ImageFolder | None

_RECIPES = "merge (fold, hash, merge neurons), red (merge, then separate kernels), red++, or prune (remove channels)."
_ROUND_TO = 16  # what processors like: the table of latencies has a row for it
_NO_IMAGES = "the images of this network are not known or not here: pass --dataset"


def compress(
    network: Annotated[str, argument("NETWORK", "A name, FILE.py:NAME, or a saved folder.", complete_networks)],
    recipe: Annotated[str, option("RECIPE", _RECIPES, complete=complete_recipes)] = "merge",
    alpha: Annotated[float | None, option("SHARE", "Share of neurons to merge. Default: 0, identical ones.")] = None,
    strategy: Annotated[
        str | None, option("NAME", "Alpha by layer: constant (default), ascending, descending, block.")
    ] = None,
    hashing: Annotated[
        bool | None, option(None, "merge: hash the weights first. Default: yes.", "--hash/--no-hash")
    ] = None,
    scale: Annotated[
        str | None, option("HOW", "red, red++: a scale for each row: none, row, or (red++) auto. Default: none; auto.")
    ] = None,
    max_noise: Annotated[
        float | None, option("SHARE", "red++: noise allowed, of the signal's variance. Default: 0.075.")
    ] = None,
    max_error: Annotated[float | None, option("ERROR", "red++: instead, relative L2 error of the weights.")] = None,
    as_published: Annotated[bool, option(None, "red++: as in the papers.", "--as-published")] = False,
    criterion: Annotated[
        str | None, option("NAME", "prune: the score. Default: reconstruction.", complete=complete_criteria)
    ] = None,
    products: Annotated[float | None, option("SHARE", "prune: multiplications to keep. Default: 0.5.")] = None,
    round_to: Annotated[
        int | None, option("N", "Round the channels kept up to a multiple of N. Default: 1; with --export 16.")
    ] = None,
    max_loss: Annotated[float | None, option("POINTS", "Write nothing if the accuracy drops by more points.")] = None,
    out: Annotated[Path | None, option("FOLDER", "Folder to write. Default: NAME-RECIPE in this folder.")] = None,
    dataset: Annotated[
        str | None, option("NAME", "Images for the accuracy. Default: the network's own.", complete=complete_datasets)
    ] = None,
    limit: Annotated[int | None, option("N", "Use only this many images.")] = None,
    build: Annotated[
        str | None, option("FILE.py:NAME", "What makes the architecture of a saved folder.", complete=complete_networks)
    ] = None,
    weights: Annotated[Path | None, option("FILE", "Weights to load: safetensors, or a state dict.")] = None,
    export: Annotated[
        str | None, option("PRECISION", "Also write FOLDER.onnx: float32 (or onnx), int8, weights8 or weights4.")
    ] = None,
) -> None:
    """Make a network smaller and save it.

    Prints the channels, weights and operations of each layer and in total, the accuracy, the latency, and the size on
    disk. The accuracy needs images: those the network was trained for if they are here, or --dataset. The latency is
    measured with and without --round-to 16; a split network is timed beside the same network in ordinary layers.
    Criteria that need images use training images. FILE.py:NAME, as NETWORK or --build, runs that file. Odd numbers of
    channels can be slower than the network before: files for other programs (--export) have multiples of 16.

    Exit codes: 0 success. 1 a step failed, or the accuracy dropped by more than --max-loss; nothing was written.
    2 wrong usage; nothing was written.
    """
    options: dict[str, Any] = {"alpha": alpha, "strategy": strategy, "hashing": hashing, "max_error": max_error}
    options |= {"as_published": as_published or None, "criterion": criterion, "products": products}
    options |= {"scale": scale, "max_noise": max_noise}
    given = {name: value for name, value in options.items() if value is not None}
    out = (out or Path(f"{called(network)}-{recipe}")).resolve()
    precision = "float32" if export == "onnx" else export
    round_to = (_ROUND_TO if export else 1) if round_to is None else round_to
    with exits(1, OSError), exits(2, ValueError, FileNotFoundError, ConnectionError, ModuleNotFoundError):
        if precision is not None:
            check_precision(precision)
        check_recipe(recipe, given)
        check_network(network, build, weights, "compress")
        dataset = _check(network, build, recipe, given, dataset, max_loss, out)
    with exits(2, ValueError, TypeError, RuntimeError), exits(1, OSError):
        from redlab.zoo.saving import load_network

        steps_of(recipe, round_to=round_to, **given)  # refuses options that are out of range
        original = load_network(network, weights or "default", build)
        images, seen = _images(dataset, limit, original), _seen(dataset, recipe, given, limit, original)
        note_example(original, images)
        steps, rounded = (steps_of(recipe, round_to=n, images=seen, **given) for n in (round_to, _ROUND_TO))
        before = _accuracy(original, images)
    with exits(1, ValueError, RuntimeError, OSError):
        results = _take(original, steps)
        _show(original, results)
        if images is not None:
            _weigh(before, results, images, max_loss)
        _save(original, results, out)
        if precision is not None:
            write(results[-1].network, out.with_name(f"{out.name}.onnx"), precision)
        _time(original, results, rounded[-1] if recipe == "merge" and round_to != _ROUND_TO else None)


def _check(
    network: str,
    build: str | None,
    recipe: str,
    given: dict[str, Any],
    dataset: str | None,
    max_loss: float | None,
    out: Path,
) -> str | None:
    """Refuse what is wrong before torch is loaded, which alone takes seconds.

    Returns:
        The name of the images: those asked for, or the network's own where they are here.
    """
    architecture = build or architecture_of(network)
    if dataset is not None:
        check_at_hand(dataset)
    if max_loss is not None and not 0 <= max_loss <= 100:  # NaN too
        raise ValueError(f"--max-loss must be a number of points of accuracy, 0 to 100, not {max_loss:g}")
    dataset = dataset or own_dataset(architecture or "")
    if architecture and not dataset:
        if max_loss is not None:
            raise ValueError(f"--max-loss needs images to measure accuracy on, and {_NO_IMAGES}")
        if needs_images(recipe, given):
            raise ValueError(f"{given['criterion']} needs images to score channels, and {_NO_IMAGES}")
    check_target(out)
    above = next(path for path in (out, *out.parents) if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{out} can't be made: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{out} can't be written: {above} may not be changed by you")
    return dataset


def _images(dataset: str | None, limit: int | None, network: nn.Module) -> Images:
    from redlab.zoo.datasets import load_dataset

    if dataset is None:
        say(f"accuracy is not measured: {_NO_IMAGES}")
        return None
    return load_dataset(dataset, limit=limit, network=network)


def _seen(dataset: str | None, recipe: str, given: dict[str, Any], limit: int | None, network: nn.Module) -> Images:
    """The images that the criterion scores by; None where it needs none. Training ones, unless there are none."""
    from redlab.zoo.datasets import load_dataset

    if dataset is None or not needs_images(recipe, given):
        return None
    split = "train" if has_training(dataset) else "test"
    images = load_dataset(dataset, split, limit=min(limit or SCORE_IMAGES, SCORE_IMAGES), network=network)
    only = "" if split == "train" else ", which has no others: the accuracy below is measured on images that it saw"
    say(f"{given['criterion']} scores channels on {len(images):,} {split} images of {dataset}{only}")
    return images


def _accuracy(network: nn.Module, images: Images) -> float:
    """In percent; NaN without images."""
    from redlab.network.evaluation import evaluate

    return float("nan") if images is None else evaluate(network, images).accuracy


def _take(network: nn.Module, steps: list[Step]) -> list[Result]:
    from redlab.compression.pipeline import take_all

    results, taken, live = [], take_all(network, steps), sys.stderr.isatty()
    for number, step in enumerate(steps, 1):
        title, start = f"[{number}/{len(steps)}] {step.title}: ", time.perf_counter()
        say("" if live else title, end="")  # a live bar takes the line until the step is done
        results.append(next(taken))
        say((title if live else "") + f"done in {time.perf_counter() - start:.1f} s")
    return results


def _show(original: nn.Module, results: list[Result]) -> None:
    from redlab.compression.tables import layer_table
    from redlab.network.result import of_layers, totals_of

    for result in results:
        say(f"\n{result}")
    table = of_layers(layer_table(original, results)).drop(columns=["kind", "skipped"])  # each step gave its reasons
    say(f"\n{table.to_string(index=False, float_format='{:.3g}'.format)}\n")
    say("\n".join(totals_of(table)))


def _weigh(before: float, results: list[Result], images: ImageArray | ImageFolder, most: float | None) -> None:
    """Say what the accuracy is now; end the command where more than ``most`` points are lost."""
    from redlab.compression.splitting import as_dense

    after = _accuracy(as_dense(results[-1].network), images)
    say(f"accuracy on {len(images):,} images: {before:.2f} % -> {after:.2f} %")
    if (lost := before - after) <= 0:
        return
    points = f"{lost:.2f} points of accuracy were lost"
    say(f"{points}: of {len(images):,} images {before:.2f} % were right, {after:.2f} % are now")
    if most is not None and lost > most + 1e-9:  # a point is rarely exact in binary
        stop(f"{points}, more than --max-loss {most:g} allows: nothing was written", 1)


def _save(original: nn.Module, results: list[Result], out: Path) -> None:
    from redlab.zoo.saving import bytes_of, save_network

    folder = save_network(results[-1], out)
    was, now = bytes_of(original), bytes_of(folder)
    code = code_of_folder(folder)
    how = f"redlab.load_network(folder, build={code!r})" if code else "redlab.load_network"
    say(f"saved to {folder}: {how} opens it")
    say(f"on disk: {was:,} bytes of tensors -> {now:,} bytes ({now / was:.1%})")


def _time(original: nn.Module, results: list[Result], rounded: Step | None) -> None:
    """Latency before and after, and after the last step with ``round_to=16``."""
    from redlab.compression.split_layers import SplitLayer
    from redlab.compression.splitting import as_dense
    from redlab.network.latency import compare_latency

    last = results[-1].network
    networks = {"before": original, "after": as_dense(last)}
    if any(isinstance(module, SplitLayer) for module in last.modules()):
        networks["after, split"] = last
    if rounded is not None:
        previous = results[-2].network if len(results) > 1 else original
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that widths are rounded is what this row is for
            networks[f"after, round_to={_ROUND_TO}"] = rounded.take(previous).network
    table = compare_latency(networks, repeats=30)
    about = table.iloc[0]
    where = f"batch {about['batch']}, threads {about['threads']}, {about['device']}, the better layout of each"
    say(f"latency in ms ({where}); ratio to before:")
    table = table.drop(columns=["batch", "threads", "device"])
    say(table.to_string(index=False, float_format="{:.3g}".format))
    slower = [row.network for row in table.iloc[1:].itertuples() if row.faster != "yes"]
    if slower:
        say(f"not faster than before: {'; '.join(slower)}")
