"""`idxflow dataset`: make a data set of what you have, and retrain your own on a schedule."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from flows.commands.options import AsJson, StoreFolder
from flows.commands.run import run
from flows.terminal.output import print_json, print_line, print_table, remark
from storage.datasets.catalog import MAX_SIDE
from storage.datasets.chosen import day_of
from storage.errors import ConfigError
from storage.files import check_local
from storage.opening import open_store
from storage.store import command_for, store_address
from storage.words import counted, times

if TYPE_CHECKING:
    from flows.own_schedules import Scheduled, Times
    from tasks.adding.add import Added, AddOptions, ClassCount
    from tasks.adding.append import AppendOptions

app = App(name="dataset", help="Make a data set of your own images, and schedule it.")
Timezone = Annotated[
    str | None, Parameter(help="Time zone of the schedule, such as Europe/Berlin. Default: that of this machine.")
]
_SKIPPED_SHOWN = 5
_CLASSES_SHOWN = 64


@app.command
def add(
    name: str,
    source: Annotated[Path, Parameter(name="FROM")],
    /,
    *,
    folder: Annotated[
        Path | None, Parameter(name="--as", help="Folder to create. Default: NAME in the current folder.")
    ] = None,
    size: Annotated[
        str | None,
        Parameter(help="Height and width of the images, such as 28x28. Default: as they are, if all have one size."),
    ] = None,
    fit: Annotated[
        Literal["pad", "mass", "stretch"],
        Parameter(
            help="How to bring images to that size: `pad` keeps proportions and fills up with the ground, `mass` "
            "centres the ink by its mass in a box of 20/28, as MNIST was made, `stretch` changes proportions."
        ),
    ] = "pad",
    test_fraction: Annotated[
        float | None,
        Parameter(
            help="Share of each class to draw as test split if the source has none, such as 0.15. Equal images stay on "
            "one side.",
            validator=Number(gt=0, lt=1),
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        Parameter(
            help="Keep all images of a group in one split, such as those of a writer: a column, or for pictures a "
            "regular expression that finds the group in the path, such as `writer([0-9]+)`."
        ),
    ] = None,
    seed: Annotated[int, Parameter(help="Seed of that draw.", validator=Number(gte=0))] = 0,
    label_column: Annotated[
        str | None, Parameter(help="Column of the labels: its name, or its number from 0. Default: by its name.")
    ] = None,
    label_base: Annotated[
        int | None, Parameter(help="First label; the others must follow without a gap. Default: any labels.")
    ] = None,
    classes: Annotated[
        str | None, Parameter(help="Names of the classes, with commas between, in the order of their labels.")
    ] = None,
    white: Annotated[
        float,
        Parameter(
            help="Value of white in tables and arrays: 1 if pixels go from 0 to 1.", validator=Number(gt=0, lte=1e9)
        ),
    ] = 255,
    transpose: Annotated[
        bool | None,
        Parameter(
            help="Swap rows and columns of each image. Default: only for EMNIST's own files.",
            negative="--no-transpose",
        ),
    ] = None,
    invert: Annotated[bool, Parameter(negative="", help="Invert the pixels (255 - x).")] = False,
    match: Annotated[
        str | None, Parameter(help="Use only files of a folder or archive with this text in their paths.")
    ] = None,
    skip_bad: Annotated[
        bool, Parameter(negative="", help="Leave out pictures that cannot be read, and list them, instead of stopping.")
    ] = False,
    schedule: Annotated[
        str | None,
        Parameter(help="Retrain at these times, in cron's form, such as '0 3 * * 0': see `idxflow dataset schedule`."),
    ] = None,
    timezone: Timezone = None,
    append: Annotated[
        bool,
        Parameter(
            negative="",
            help="Append the images to the data set NAME that this command has made: one more archive for each of its "
            "files. See docs/how-to/parts.md.",
        ),
    ] = False,
    date: Annotated[
        str | None,
        Parameter(help="The day that the images are of, such as 2026-11-30. Default with `--append`: today."),
    ] = None,
    train: Annotated[
        bool,
        Parameter(
            name="--run", negative="", help="Also retrain on it at once: then as `idxflow run`, also with --json."
        ),
    ] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Make four IDX archives and a manifest of what you have.

    FROM is a folder of pictures with a folder for each class (with or without train/ and test/ around these), a CSV or
    TSV table with a column per pixel, a Parquet or Feather file, NumPy's .npz or .npy, EMNIST's .mat, IDX files, or a
    ZIP or tar archive of these. What was found is printed, with a picture of one example per class; nothing is guessed
    in silence. The source is only read.

    With `--append`, equal images stay in the split where they are. Nothing else of the data set changes.

    Examples: `idxflow dataset add letters ~/letters --size 28x28 --test-fraction 0.15` ·
    `idxflow dataset add letters ~/monday --size 28x28 --test-fraction 0.15 --append` ·
    `idxflow dataset add kaggle train.csv --test-fraction 0.2` · `idxflow dataset add mine mnist.npz --run`

    Args:
        name: Name of the data set, in the store and in commands.
        source: What you have.
    """
    from flows import own_schedules
    from flows.terminal import bars
    from tasks.adding.add import AddOptions
    from tasks.adding.add import add as make
    from tasks.adding.append import AppendOptions
    from tasks.adding.batches import Reading

    check_local("FROM", source)
    if folder:
        check_local("--as", folder)
    reading = Reading(
        _size(size), fit, label_column, group_by, white, transpose, match=match or "", invert=invert, skip_bad=skip_bad
    )
    names = tuple(word.strip() for word in classes.split(",")) if classes else ()
    place = (folder or Path(name)).expanduser().absolute()
    path, day = source.expanduser().absolute(), day_of(date, "--date") if date else None
    if append:
        _check_of_new(
            {"--classes": classes, "--label-base": label_base, "--schedule": schedule, "--timezone": timezone}
        )
        return _append(
            AppendOptions(name, path, place, day or datetime.date.today(), reading, test_fraction, seed),
            train,
            store,
            as_json,
        )
    options = AddOptions(name, path, place, reading, names, label_base, test_fraction, seed, day)
    times = _times_of_new(options, schedule, timezone, store)
    with bars.shown():
        added = make(options, lambda line: remark(f"note: {line}"))
    if not as_json:
        # Whatever happens now, this is made.
        _print(added)
        if not train:
            print_line(f"next: {command_for(store_address(store), added.next_command.removeprefix('idxflow '))}")
    scheduled = own_schedules.schedule(open_store(store), added.manifest, times) if times else None
    if as_json and not train:
        return print_json({**added.values(), "schedule": scheduled and scheduled.values(), "error": None})
    if scheduled and not as_json:
        _print_schedule(scheduled, store)
    return run(dataset_file=[str(added.manifest)], store=store, as_json=as_json) if train else 0


def _append(options: AppendOptions, train: bool, store: str | None, as_json: bool) -> int:
    """Append images to a data set, and print what was appended."""
    from flows.terminal import bars
    from tasks.adding.append import append

    with bars.shown():
        appended = append(options, lambda line: remark(f"note: {line}"))
    if as_json and not train:
        return print_json({**appended.values(), "error": None})
    if not as_json:
        rows = " + ".join(f"{count:,}" for count in appended.rows.values())
        archives = " + ".join(f"{count:,}" for count in appended.archives.values())
        print_line(f"found {appended.found}")
        print_line(
            f"appended {rows} images of {appended.date} to {appended.manifest}, which has {archives} archives now"
        )
        for line in appended.skipped[:_SKIPPED_SHOWN]:
            print_line(f"left out: {line}")
        if not train:
            print_line(f"next: {command_for(store_address(store), appended.next_command.removeprefix('idxflow '))}")
    return run(dataset_file=[str(appended.manifest)], store=store, as_json=as_json) if train else 0


def _check_of_new(options: Mapping[str, object]) -> None:
    """Refuse options that are only for a new data set."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given:
        raise ConfigError(f"expected no {given} with --append, because it is for a new data set; leave it out")


@app.command
def schedule(manifest: Path, cron: str, /, *, timezone: Timezone = None, store: StoreFolder = None) -> int:
    """Retrain your own data set on a schedule.

    Writes a deployment, retrain/NAME, to a file beside the manifest, such as letters.prefect.yaml, and lists the
    manifest in the store. `idxflow up` of the same store deploys it: when it starts, or within a minute while it runs.
    Typed again, it changes the times.

    Example: `idxflow dataset schedule letters/letters.toml "0 3 * * 0"` (Sundays at 3:00)

    Args:
        manifest: Manifest (TOML) of your own data set.
        cron: Minute, hour, day of the month, month and day of the week, as for crontab; or a word such as `@weekly`.
    """
    from flows import own_schedules

    opened = open_store(store)
    _print_schedule(own_schedules.schedule(opened, manifest, own_schedules.checked_times(cron, timezone)), store)
    return 0


@app.command
def unschedule(manifest: Path, /, *, store: StoreFolder = None) -> int:
    """Take the schedule of your own data set away.

    Removes the file beside the manifest. `idxflow up` then removes the deployment from the server: when it starts, or
    within a minute while it runs. Schedules that you made in Prefect's UI stay.

    Example: `idxflow dataset unschedule letters/letters.toml`

    Args:
        manifest: Manifest (TOML) of your own data set; it may be gone.
    """
    from flows import own_schedules

    print_line(f"removed {own_schedules.unschedule(open_store(store), manifest)}")
    return 0


def _times_of_new(options: AddOptions, cron: str | None, timezone: str | None, store: str | None) -> Times | None:
    """Check the schedule of a data set that is to be made, before anything is."""
    from flows import own_schedules

    if cron is None:
        if timezone:
            raise ConfigError(
                f"expected --schedule with --timezone; found only --timezone {timezone}; add one, or leave the other "
                "out"
            )
        return None
    times = own_schedules.checked_times(cron, timezone)
    own_schedules.check_free(open_store(store), options.name, options.manifest)
    return times


def _print_schedule(scheduled: Scheduled, store: str | None) -> None:
    times = scheduled.times
    print_line(f"scheduled retrain/{scheduled.name}: next {times.next():%A %Y-%m-%d %H:%M}, {times.timezone}")
    print_line(f"made {scheduled.file}, which `{command_for(store_address(store), 'up')}` deploys")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,4})[x×]([0-9]{1,4})", text.strip().lower())
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= size[0] <= MAX_SIDE and 1 <= size[1] <= MAX_SIDE):
        raise ConfigError(
            f"--size: expected height and width of 1 to {MAX_SIDE:,} pixels, such as 28x28; found {text!r}; correct it"
        )
    return size


def _print(added: Added) -> None:
    how = "the test split was drawn" if added.drawn else "as the source is split"
    rows = " + ".join(f"{count:,}" for count in added.rows.values())
    print_line(f"found {added.found}")
    print_line(
        f"{rows} images of {times(added.image_shape)}, {how}; pixels {added.darkest} to {added.brightest}, "
        f"{added.ink} ink"
    )
    print_table(map(_cells, added.classes[:_CLASSES_SHOWN]))
    if len(added.classes) > _CLASSES_SHOWN:
        print_line(f"… and {counted(len(added.classes) - _CLASSES_SHOWN, 'class', 'classes')} more")
    for line in added.skipped[:_SKIPPED_SHOWN]:
        print_line(f"left out: {line}")
    if len(added.skipped) > _SKIPPED_SHOWN:
        print_line(f"… and {len(added.skipped) - _SKIPPED_SHOWN:,} more: see {added.manifest.with_suffix('.json')}")
    others = (added.manifest.name, added.manifest.with_suffix(".json").name, added.pictures.name)
    print_line(f"made {added.folder}: the archives, {', '.join(others)}")


def _cells(found: ClassCount) -> tuple[str, str]:
    shown = "" if found.found_as == found.name else f", {found.found_as!r} in the source"
    return f"  {found.label:>3}  {found.name}", f"{found.train:,} train + {found.test:,} test{shown}"
