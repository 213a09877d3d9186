"""Schedule retraining of a user's own data set: a file beside its manifest, which `idxflow up` deploys.

The file has the form of `prefect.yaml`, with one deployment, named as the data set. A list in the store
(`storage.own_data`) says where `up` finds it.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import yaml

from flows.settings import POOL, ROOT
from flows.terminal.text import is_utf8
from storage import own_data
from storage.datasets import catalog
from storage.datasets.catalog import shown
from storage.errors import ConfigError
from storage.files import open_regular, write_bytes
from storage.store import Store
from storage.words import meant

ENTRYPOINT = "flows.retrain.retrain"
_LOCALTIME = Path("/etc/localtime")
"""A link to the machine's time zone, localtime(5)."""
_ZONES = "/zoneinfo/"
"""Above the time zones of the IANA on Linux."""

_FILE = """\
# The schedule of the data set {name}. `idxflow up` deploys it; while it runs, it notices within a minute if this file
# is changed or gone. You may change the schedule and the description, and add parameters, such as `profile: fast`.
# `idxflow dataset schedule` changes the time in it, `idxflow dataset unschedule` removes it.
name: idxflow

deployments:
  - name: "{name}"
    description: Retrain on {name}, as its own file says.
    entrypoint: {entrypoint}
    work_pool:
      name: {pool}
    concurrency_limit:
      limit: 1
      collision_strategy: CANCEL_NEW
    tags: [idxflow, "{name}"]
    parameters:
      dataset: "{name}"
      dataset_file: {manifest}
    schedules:
      - slug: own
        cron: {cron}
        timezone: {timezone}
        active: true
"""


@dataclass(frozen=True)
class Times:
    """When to retrain."""

    cron: str
    timezone: str
    """A name of the IANA's, such as Europe/Berlin."""

    def next(self, now: datetime | None = None) -> datetime:
        """Return the next time in this time zone, after `now` (with a time zone; None: the clock's)."""
        from prefect._vendor.croniter.croniter import croniter

        start = (now or datetime.now().astimezone()).astimezone(ZoneInfo(self.timezone))
        due: datetime = croniter(self.cron, start).get_next(datetime)  # type: ignore[no-untyped-call]
        return due


@dataclass(frozen=True)
class Scheduled:
    """A data set with a schedule."""

    name: str
    """Of the data set and its deployment."""
    manifest: Path
    file: Path
    times: Times

    def values(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "deployment": f"retrain/{self.name}",
            "file": str(self.file),
            **asdict(self.times),
            "next_run": self.times.next().isoformat(timespec="seconds"),
        }


def file_of(manifest: Path) -> Path:
    """Return the file with the schedule of a manifest, such as `letters.prefect.yaml` beside `letters.toml`."""
    return manifest.with_suffix(".prefect.yaml")


def checked_times(cron: str, timezone: str | None = None) -> Times:
    """Return when to retrain.

    Args:
        cron: as crontab(5) has it, or as Prefect accepts beyond that: a sixth field of seconds, `@weekly`.
        timezone: None: that of this machine.

    Raises:
        ConfigError: the time zone is unknown, or the cron text is malformed or never comes due.
    """
    zone = timezone or _local_zone()
    if zone not in available_timezones():
        known = meant(zone, available_timezones())
        raise ConfigError(
            f"expected a time zone such as Europe/Berlin; found {shown(zone)}{known}; give one with --timezone"
        )
    # Importing Prefect takes seconds.
    from prefect.client.schemas.schedules import CronSchedule

    from flows.service.deployments import comes_due

    try:
        problem = "" if comes_due(CronSchedule(cron=cron, timezone=zone)) else ", which never comes due"
    except ValueError:
        problem = ", which is malformed"
    if problem:
        raise ConfigError(
            "expected a time in cron's form, such as '0 3 * * 0' for Sundays at 3:00; found "
            f"{shown(cron)}{problem}; correct it"
        )
    return Times(cron, zone)


def _local_zone() -> str:
    """Return the name of this machine's time zone.

    Raises:
        ConfigError: it has none, as with a copy in place of a link.
    """
    # Both as the C library looks for it, tzset(3).
    place = os.environ.get("TZ", "").removeprefix(":") or (str(_LOCALTIME.resolve()) if _LOCALTIME.exists() else "UTC")
    name = place.partition(_ZONES)[2] or place
    if name not in available_timezones():
        raise ConfigError(
            f"expected this machine's time zone to have a name, by TZ or {_LOCALTIME}; found {shown(place)}; "
            "give one with --timezone, such as Europe/Berlin"
        )
    return name


def check_free(store: Store, name: str, manifest: Path) -> None:
    """Check that a data set can be scheduled in a store: that its name is free, and the store can be written.

    Raises:
        ConfigError: another deployment has the name, or the path cannot be in the file.
        DamagedEntry: the list of the store is damaged.
        OSError: the store cannot be written.
    """
    _as_yaml(manifest)
    with own_data.changing(store.root) as listed:
        _check_free(store, listed, name, manifest)


def schedule(store: Store, manifest: Path, times: Times) -> Scheduled:
    """Write the file of a data set, and list it in the store; the same times again change nothing.

    Raises:
        ConfigError: the manifest is unusable, its name is taken, or its file was changed in other ways.
        DamagedEntry: the list of the store is damaged.
        OSError: something cannot be written.
    """
    dataset = catalog.read(manifest)
    name, manifest = dataset.name, dataset.manifest
    file, text = file_of(manifest), _text(name, manifest, times)
    with own_data.changing(store.root) as listed:
        _check_free(store, listed, name, manifest)
        if _is_to_write(file, text):
            write_bytes(file, text.encode())
        for other in [other for other, path in listed.items() if _is_same(path, manifest)]:
            del listed[other]
        listed[name] = manifest
    return Scheduled(name, manifest, file, times)


def unschedule(store: Store, manifest: Path) -> Path:
    """Remove the file of a data set, and take it off the list of the store; return the file that is gone.

    Args:
        manifest: it may be gone.

    Raises:
        ConfigError: it has no schedule.
        DamagedEntry: the list of the store is damaged.
        OSError: something cannot be written.
    """
    manifest = manifest.expanduser().absolute()
    file = file_of(manifest)
    with own_data.changing(store.root) as listed:
        names = [name for name, path in listed.items() if _is_same(path, manifest)]
        if not names and not file.exists():
            known = ", ".join(map(str, listed.values()))
            raise ConfigError(
                f"expected a data set with a schedule in the store {store.address} ({known or 'none yet'}); found "
                f"{manifest}; give its manifest, or name another store with --store or IDXFLOW_STORE"
            )
        file.unlink(missing_ok=True)
        for name in names:
            del listed[name]
    return file


def _check_free(store: Store, listed: Mapping[str, Path], name: str, manifest: Path) -> None:
    plan = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    taken = [deployment["name"] for deployment in plan["deployments"]]
    if name in taken:
        raise ConfigError(
            f"expected a data set to schedule with a name that no deployment of {ROOT / 'prefect.yaml'} has "
            f"({', '.join(taken)}); found {name!r}; choose another name"
        )
    other = listed.get(name)
    if other and not _is_same(other, manifest) and file_of(other).exists():
        words = store.command(f"dataset unschedule {shlex.quote(str(other))}")
        raise ConfigError(
            f"expected no other schedule of {name} in the store {store.address}; found {file_of(other)}; choose "
            f"another name, or remove that one: `{words}`"
        )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one == other


def _text(name: str, manifest: Path, times: Times) -> str:
    return _FILE.format(
        name=name,
        entrypoint=ENTRYPOINT,
        pool=POOL,
        manifest=_as_yaml(manifest),
        cron=json.dumps(times.cron),
        timezone=times.timezone,
    )


def _as_yaml(manifest: Path) -> str:
    """Return a path as YAML has it.

    Raises:
        ConfigError: it is no text, or Prefect would replace a part of it.
    """
    path = str(manifest)
    if "{{" in path or not is_utf8(path):
        raise ConfigError(
            "expected the path of a data set to schedule in UTF-8 and without '{{', which Prefect replaces; found "
            f"{path!a}; rename the folder or the file"
        )
    return str(yaml.safe_dump(path, default_style='"', allow_unicode=True, width=math.inf)).strip()


def _is_to_write(file: Path, text: str) -> bool:
    """Return whether the file has to be written: it is not there, or has other times.

    Raises:
        ConfigError: it was changed in other ways, which would be lost.
    """
    try:
        with open_regular(file) as stream:
            found = yaml.safe_load(stream.read().decode())
    except FileNotFoundError:
        return True
    except (ValueError, RecursionError, yaml.YAMLError):
        found = None
    times, rest = _parted(found)
    wanted_times, wanted_rest = _parted(yaml.safe_load(text))
    if times != wanted_times and rest != wanted_rest:
        raise ConfigError(
            f"expected {file} as `idxflow dataset schedule` wrote it; found other changes in it; change its schedule "
            "there, or remove it first"
        )
    return bool(times != wanted_times)


def _parted(plan: Any) -> tuple[Any, Any]:
    """Return what `schedule` changes in a file, and all the rest; all of a file that has another form is the rest."""
    try:
        rest = copy.deepcopy(plan)
        (deployment,) = rest["deployments"]
        (schedule,) = deployment["schedules"]
        times = schedule.pop("cron"), schedule.pop("timezone"), deployment["parameters"].pop("dataset_file")
    except (TypeError, ValueError, KeyError, AttributeError):
        return None, plan
    return times, rest
