"""The command ``redlab compress``: a network in, a smaller one out, and what that did to it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from redlab.compress import Step
    from redlab.datasets import ImageArray
    from redlab.result import Result

_ROUND_TO = 16  # what processors like: the table of latencies has a row for it


def compress(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="A name, or the folder of a saved network.")],
    recipe: Annotated[
        str, typer.Option(help="merge (fold, hash, merge neurons), red (and separate kernels), red++.")
    ] = "merge",
    alpha: Annotated[
        float, typer.Option(help="Share of each layer's neurons that merges beyond identical ones.")
    ] = 0.0,
    strategy: Annotated[str, typer.Option(help="Alpha by layer: constant, ascending, descending, block.")] = "constant",
    hashing: Annotated[bool, typer.Option("--hash/--no-hash", help="Hash the weights before they merge.")] = True,
    max_error: Annotated[
        float | None, typer.Option(help="red++: relative L2 error of the layers; default: its own.")
    ] = None,
    as_published: Annotated[bool, typer.Option("--as-published", help="red++: as the papers have it.")] = False,
    round_to: Annotated[int, typer.Option(help="Keep a multiple of so many channels.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: NAME-RECIPE in this folder.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Images for the accuracy; default: the network's own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Take so many images only.")] = None,
) -> None:
    """Make a network smaller and save it.

    Prints each layer's channels, weights and operations, their totals, the accuracy (on the dataset that the network
    was trained for, where that is here already, or on --dataset), the latency (with and without round_to=16; of a split
    network beside that of the same one in ordinary layers), and the sizes on disk.
    Exit codes: 0 done, 1 a step failed, 2 wrong usage, and nothing was written.
    """
    with _exits(2, ValueError, TypeError), _exits(1, OSError):
        from redlab.compress import steps_of
        from redlab.splitting import as_dense
        from redlab.storage import check_target, load_network

        options: dict[str, Any] = {"alpha": alpha, "strategy": strategy, "hashing": hashing}
        options |= {"max_error": max_error, "as_published": as_published}
        steps, rounded = steps_of(recipe, round_to=round_to, **options), steps_of(recipe, round_to=_ROUND_TO, **options)
        original = load_network(network)
        out = (out or Path(f"{Path(network).resolve().name}-{recipe}")).resolve()
        check_target(out)
        images = _images(original, dataset, limit)
    with _exits(2, ValueError, RuntimeError):
        before = _accuracy(original, images)
    with _exits(1, ValueError, RuntimeError, OSError):
        results = _take(original, steps)
        _save(original, results, out)
        if images is not None:
            after = _accuracy(as_dense(results[-1].network), images)
            typer.echo(f"accuracy on {len(images):,} images: {before:.2f} % -> {after:.2f} %")
        _time(original, results, rounded[-1] if recipe == "merge" and round_to != _ROUND_TO else None)


@contextmanager
def _exits(code: int, *errors: type[Exception]) -> Iterator[None]:
    """What is raised inside becomes its message and this exit code."""
    try:
        yield
    except errors as error:
        typer.echo(f"redlab: {error}", err=True)
        raise typer.Exit(code) from error


def _images(network: nn.Module, dataset: str | None, limit: int | None) -> ImageArray | None:
    from redlab.compress import dataset_of
    from redlab.datasets import load_dataset

    if dataset is not None:
        return load_dataset(dataset, limit=limit)
    images = dataset_of(network, limit)
    if images is None:
        typer.echo("accuracy is not measured: this network's images are not known or not here; name some by --dataset")
    return images


def _accuracy(network: nn.Module, images: ImageArray | None) -> float | None:
    from redlab.evaluation import evaluate

    return None if images is None else evaluate(network, images).accuracy


def _take(network: nn.Module, steps: list[Step]) -> list[Result]:
    from redlab.compress import take_steps

    results, live = [], sys.stderr.isatty()  # a live bar takes the line until the step is done
    titles = [f"[{number}/{len(steps)}] {step.title}" for number, step in enumerate(steps, 1)]
    typer.echo("" if live else f"{titles[0]}: ", nl=False)
    for _, result, seconds in take_steps(network, steps):
        results.append(result)
        typer.echo((f"{titles[len(results) - 1]}: " if live else "") + f"done in {seconds:.1f} s")
        if len(results) < len(steps):
            typer.echo("" if live else f"{titles[len(results)]}: ", nl=False)
    return results


def _save(original: nn.Module, results: list[Result], out: Path) -> None:
    from redlab.compress import bytes_of
    from redlab.pipeline import layer_table
    from redlab.remainder import of_layers
    from redlab.result import totals_of
    from redlab.storage import save_network

    for result in results:
        typer.echo(f"\n{result}")
    table = of_layers(layer_table(original, results)).drop(columns=["kind", "skipped"])  # each step gave its reasons
    typer.echo(f"\n{table.to_string(index=False, float_format='{:.3g}'.format)}\n")
    for line in totals_of(table):
        typer.echo(line)
    folder = save_network(results[-1], out)
    was, now = bytes_of(original), bytes_of(folder)
    typer.echo(f"saved to {folder}: redlab.load_network opens it")
    typer.echo(f"on disk: {was:,} bytes of tensors -> {now:,} bytes ({now / was:.1%})")


def _time(original: nn.Module, results: list[Result], rounded: Step | None) -> None:
    """Latency before and after, and after the last step with ``round_to=16``."""
    from redlab.latency import compare_latency
    from redlab.split_layers import SplitLayer
    from redlab.splitting import as_dense

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
    typer.echo(f"latency in ms ({where}); ratio to before:")
    table = table.drop(columns=["batch", "threads", "device"])
    typer.echo(table.to_string(index=False, float_format="{:.3g}".format))
    slower = [row.network for row in table.iloc[1:].itertuples() if row.faster != "yes"]
    if slower:
        typer.echo(f"not faster than before: {'; '.join(slower)}")
