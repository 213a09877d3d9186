"""Event files for TensorBoard: a folder per run below LOGDIR/DATASET, in the layout that Keras' own callback has.

    LOGDIR/DATASET/RUN/              learning rate, gradient norms, hyperparameters, the decision, pictures
    LOGDIR/DATASET/RUN/train/        loss and accuracy of each epoch on the fitted rows
    LOGDIR/DATASET/RUN/validation/   the same on the rows held out
    LOGDIR/DATASET/RUN/test/         the same of the kept model on the test split, and its other scores

An event file is a sequence of records, each an `Event` message
(https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details). TensorBoard's own writers put the
time, the host and the process into the name of the file and a time into each event, so writing again would double
everything. Here, names and times come from the run: the same run gives the same bytes, and a file is replaced only if
its bytes would change.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.dataset_in_store import DatasetInStore
from flows.sharing.contents import Contents, contents_of, own_runs, text_of
from flows.sharing.extras import check_installed
from storage.errors import ConfigError
from storage.files import check_local, kind_of, make_folder, write_bytes
from storage.formats import split_rows
from storage.runtime.progress import Progress, advance
from tasks.report.evidence import readable
from tasks.report.past_runs import run_record
from tasks.report.phrases import class_name

_GROUPS = ("train", "validation", "test")
_SUFFIX = ".idxflow"
_SHOWN = 10
"""Mistakes in the picture."""


@dataclass(frozen=True)
class Written:
    """What is in the folder of TensorBoard now."""

    folder: Path
    """Of the data set."""
    written: tuple[str, ...]
    """Runs whose files are new or have changed."""
    present: tuple[str, ...]
    """Runs whose files were there."""


def write(data: DatasetInStore, logdir: Path, runs: tuple[str, ...] = ()) -> Written:
    """Write the event files of runs that have results of their own; those of other runs stay.

    Args:
        logdir: what `tensorboard --logdir` is given; made if missing.
        runs: by the names that `DatasetInStore.run` takes; empty: all.

    Raises:
        ConfigError: TensorBoard is not installed, there is no such run, or the folder is in the store or cannot be
            written.
        StoreError: the store cannot be read.
    """
    check_installed("tensorboard", "idxflow share tensorboard", "tensorboard")
    check_local("--logdir", logdir)
    folder = logdir.expanduser().absolute() / data.name
    if folder.resolve().is_relative_to(data.store.root.resolve()):
        raise ConfigError(
            f"expected --logdir outside the store {data.store.address}; found {logdir}; choose another folder"
        )
    records = own_runs(data, runs)
    changed: dict[str, bool] = {}
    for number, record in enumerate(records):
        advance(Progress("event files", number, len(records), "runs", f"{number} of {len(records)} runs"))
        with data.store.in_use(data.name):
            contents = contents_of(data, record)
            files = dict(_files(data, contents))
        changed[contents.run] = _place(folder / contents.run, files)
    advance(Progress("event files", 1, 1, "runs"))
    written = tuple(run for run, is_new in changed.items() if is_new)
    return Written(folder, written, tuple(run for run in changed if run not in written))


def _place(folder: Path, files: dict[str, bytes]) -> bool:
    """Write the files that are missing or differ; return whether there were any."""
    changed = False
    try:
        for name, content in files.items():
            file = folder / name
            if not (file.is_file() and file.read_bytes() == content):
                make_folder(file.parent)
                write_bytes(file, content)
                changed = True
    except OSError as error:
        where = Path(error.filename2 or error.filename or folder)
        raise ConfigError(
            f"expected a folder that can be written at {folder}; found {error.strerror} at {where} ({kind_of(where)}); "
            "correct that, or choose another --logdir"
        ) from error
    return changed


Event = tuple[int, float, Any]
"""Step, seconds since 1970, and a `Summary` message."""


def _files(data: DatasetInStore, contents: Contents) -> Iterator[tuple[str, bytes]]:
    """Yield the event files of a run: name below its folder, content."""
    # TensorBoard sorts a run's files by name.
    name = f"events.out.tfevents.{int(contents.started):010d}{_SUFFIX}"
    groups = _scalars(contents)
    for group in _GROUPS:
        if groups[group]:
            yield f"{group}/{name}", _encoded(contents, groups[group])
    yield name, _encoded(contents, [*groups[""], *_of_run(data, contents)])


def _scalars(contents: Contents) -> dict[str, list[Event]]:
    """Return the scalars by group, those of the run itself under the empty name."""
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    groups: dict[str, list[Event]] = defaultdict(list)
    for point in contents.points():
        groups[point.group].append((point.epoch, point.time, scalar_pb(point.name, point.value)))
    for name, value in contents.scores().items():
        group, _, rest = name.partition("/")
        group, tag = (group, rest) if group in _GROUPS else ("", name)
        groups[group].append((contents.chosen_epoch, contents.ended, scalar_pb(tag, value)))
    return groups


def _of_run(data: DatasetInStore, contents: Contents) -> Iterator[Event]:
    from tensorboard.plugins.text.summary_v2 import text_pb

    step, time = contents.chosen_epoch, contents.ended
    yield step, time, _hyperparameters(contents)
    yield step, time, text_pb("decision", _text(contents))
    picture = _mistakes(data, contents)
    if picture:
        yield step, time, _image("mistakes", picture)
    yield step, time, _session_end(contents)


def _hyperparameters(contents: Contents) -> Any:
    """Return the summary that has the tab HParams compare runs."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    parameters = {
        name: value if isinstance(value, bool | int | float) else text_of(value)
        for name, value in contents.parameters.items()
        if value is not None
    }
    return _ordered(hparams_pb(parameters, trial_id=contents.run, start_time_secs=contents.started))


def _session_end(contents: Contents) -> Any:
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    is_complete = not contents.record.get("error")
    ended = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.STATUS_SUCCESS if is_complete else api_pb2.STATUS_FAILURE, end_time_secs=contents.ended
    )
    content = plugin_data_pb2.HParamsPluginData(session_end_info=ended)
    return summary_pb2.Summary(
        value=[
            summary_pb2.Summary.Value(
                tag=metadata.SESSION_END_INFO_TAG,
                metadata=metadata.create_summary_metadata(content),
                tensor=metadata.NULL_TENSOR,
            )
        ]
    )


def _ordered(summary: Any) -> Any:
    """Return a summary of hyperparameters with these in order: the order of a map's bytes is otherwise left open."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    for value in summary.value:
        plugin = value.metadata.plugin_data
        content = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
        plugin.content = content.SerializeToString(deterministic=True)
    return summary


def _text(contents: Contents) -> str:
    """Return Markdown: how the run ended, and what it was made from."""
    rows = [f"| {name} | {' '.join(value.split())} |" for name, value in contents.facts().items()]
    return "\n".join([contents.sentence, "", "| | |", "|:--|:--|", *(row.replace("`", "'") for row in rows)])


def _mistakes(data: DatasetInStore, contents: Contents) -> bytes | None:
    """Return a picture of the most confident mistakes, PNG; None if there are none, or they are no longer known."""
    record = run_record(data.store, contents.record)
    test, score = record.test, record.evaluation
    shown = score.mistakes[:_SHOWN] if score and test else ()
    rows = [mistake.row for mistake in shown]
    images = readable(lambda split: split_rows.images(split, rows), test) if shown else None
    if images is None:
        return None
    from tasks.report.contact_sheet import draw

    captions = [
        [f"labelled {class_name(record, mistake.label)}", f"predicted {class_name(record, mistake.predicted)}"]
        for mistake in shown
    ]
    return draw(images, captions, "png")


def _image(tag: str, png: bytes) -> Any:
    from PIL import Image
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.image import metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    width, height = Image.open(io.BytesIO(png)).size
    # The form of this plugin: sizes as text, then the images.
    tensor = make_tensor_proto([str(width).encode(), str(height).encode(), png])
    described = metadata.create_summary_metadata(display_name=None, description=None)
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, metadata=described, tensor=tensor)])


def _encoded(contents: Contents, events: Iterable[Event]) -> bytes:
    """Return the bytes of an event file."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    records = RecordWriter(stream)
    first = event_pb2.Event(wall_time=contents.started, file_version="brain.Event:2")
    records.write(first.SerializeToString(deterministic=True))
    for step, time, summary in events:
        event = event_pb2.Event(wall_time=time, step=step, summary=summary)
        records.write(event.SerializeToString(deterministic=True))
    return stream.getvalue()
