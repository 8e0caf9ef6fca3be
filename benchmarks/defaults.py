"""What the defaults rest on, where no other table tells: accuracy and what is left under each choice, side by side.

    python -m benchmarks.defaults                  goes on where the last run stopped
    python -m benchmarks.defaults bandwidth unit   these questions only, those of the old count again

Needs REDLAB_DATA with cifar10/, weights/ and imagenet/val250; what is not there is left out. Rows are kept in
defaults.csv as soon as they are there; defaults.md is the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from benchmarks.default_measures import before, images_of
from benchmarks.default_questions import QUESTIONS, Question, limit_of
from benchmarks.intervals import with_interval
from benchmarks.timing import machine

ROWS, TABLE = Path(__file__).with_name("defaults.csv"), Path(__file__).with_name("defaults.md")
_KEY = ["question", "network", "setting"]
_OLD = "Products by the old count, in which those by padding were among them."


def main(*asked: str) -> None:
    if unknown := set(asked) - set(QUESTIONS):
        raise SystemExit(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    rows = pd.read_csv(ROWS) if ROWS.exists() else pd.DataFrame(columns=[*_KEY, "count"])
    rows = rows[~((rows["count"] == "old") & rows["question"].isin(asked))]
    done = set(rows[_KEY].itertuples(index=False, name=None))
    for job in (bar := tqdm([job for job in jobs(*asked) if job not in done])):
        bar.set_description(", ".join(job))
        rows = pd.concat([rows, measure(*job)], ignore_index=True) if len(rows) else measure(*job)
        rows.to_csv(ROWS, index=False, float_format="%.6g")
        TABLE.write_text(table(rows))


def jobs(*asked: str) -> list[tuple[str, str, str]]:
    """Question, network and setting; small networks first."""
    return [
        (title, name, setting)
        for title in asked or QUESTIONS
        for name in QUESTIONS[title].networks
        for setting in QUESTIONS[title].settings
    ]


def measure(title: str, name: str, setting: str) -> pd.DataFrame:
    """The rows of one setting."""
    question, limit = QUESTIONS[title], limit_of(name, title)
    images = images_of(name, limit)
    own = pd.DataFrame(question.measure(name, question.settings[setting], images))
    seen = {"before": before(name, limit), "images": len(images)} if "accuracy" in own else {}
    return own.assign(question=title, network=name, setting=setting, **seen, machine=machine(), count="new")


def table(rows: pd.DataFrame) -> str:
    """defaults.md."""
    lines = [
        "# What the defaults rest on",
        "",
        "Made by `python -m benchmarks.defaults`. Accuracy in percent on so many test images as stand there, no "
        "fine-tuning; where there are several seeds, mean and standard deviation; in brackets Wilson's 95 % interval, "
        "for the images alone. The defaults were chosen on these test images, but for `red_plus_plus`: its scale, "
        "clip, budget and max_noise are chosen on others, in scales.md. Other columns are shares of what the network "
        "had, but for the distinct values, the mean relative error a layer "
        "and alpha. Rows with balanced rounding are from before its search was compiled, which moves the ResNets by "
        "at most 0.05 points and MobileNetV1 by at most 1.2. "
        f"Measured on {'; '.join(rows['machine'].unique())}.",
        "",
    ]
    if missing := [title for title in QUESTIONS if title not in set(rows["question"])]:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    for title, question in QUESTIONS.items():
        if (own := rows[rows["question"] == title]).size:
            old = (own["count"] == "old").any() and "products" in question.shown
            says = f"{question.says} {_OLD}" if old else question.says
            lines += [f"## {title}", "", says, "", *_section(own, question)]
    return "\n".join(lines)


def _section(rows: pd.DataFrame, question: Question) -> list[str]:
    lines = []
    for name, own in rows.groupby("network", sort=False):
        first = own["before"].iloc[0] if "before" in own else float("nan")
        titles = [name if pd.isna(first) else f"{name}, before {_before(own)}"]
        keeps = [keep for keep in own["keep"].unique() if pd.notna(keep)] if "keep" in own else []
        columns = [*question.shown, *([] if pd.isna(first) else ["accuracy"])]
        titles += [f"{column}{at}" for at in ([f", {keep:.0%} kept" for keep in keeps] or [""]) for column in columns]
        lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for setting, part in own.groupby("setting", sort=False):
            parts = [part[part["keep"] == keep] for keep in keeps] or [part]
            lines.append(f"| {setting} | {' | '.join(_cell(p, c) for p in parts for c in columns)} |")
        lines.append("")
    return lines


def _before(rows: pd.DataFrame) -> str:
    return f"{with_interval(rows['before'].iloc[:1], rows['images'].iloc[0])} % of {rows['images'].iloc[0]:,.0f} images"


def _cell(rows: pd.DataFrame, column: str) -> str:
    if (values := rows[column].dropna()).empty:
        return ""
    if column == "accuracy":
        return with_interval(values, rows["images"].iloc[0])
    mean = values.mean()
    styles = {"distinct": f"{mean:,.0f}", "error": f"{mean:.3f}", "alpha": f"{mean:.3g}"}
    return styles.get(column, f"{mean:.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
