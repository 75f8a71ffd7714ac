"""habitus.toml: the one file that says where events are, what they mean, and where segments go."""

import codecs
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from features import damage
from features.event_names import check_names
from features.labels import COLUMNS, LabelSettings
from features.lake import Lake
from features.limits import DAYS_MAX, DAYS_MIN, END_OF_INSTANTS, FIRST_INSTANT, SECONDS_MAX, SEED_MAX
from features.sessions import SessionSettings
from features.snapshots import FAVOURITES, FeatureSettings, feature_names
from features.sources import RESERVED, Settings, Source, TimeZone, Users
from features.table import ContractError
from features.upgrades import find_upgrades
from flows.explanations import explain, find_nul
from models import rfm
from models.candidates import SHARE_MIN, STABILITY_MIN
from models.conditions import Kind
from models.evaluation import CalibrationSettings
from models.lifecycle import LifecycleSettings
from models.rules import RulesSettings
from publish.assignments import ASSIGNMENTS
from publish.brake import BrakeSettings
from publish.consents import Purposes, check_purposes
from publish.destination import NAME
from publish.destinations import AnySettings
from publish.destinations.files import FilesSettings, Format
from publish.destinations.folders import FolderSettings
from publish.formulas import Formulas
from publish.report.settings import USER_ID, ReportSettings

SEGMENT_ID = re.compile(r"S\d{2,}")
"""Of discovered segments."""
SIZE_MAX_BYTES = 1_000_000
OWN = re.compile(r"self|place|previous_segment_id|.*_(right|then)", re.IGNORECASE)
"""Names that tables have for a while beside columns that a configuration names."""
LOCAL = "published"
"""The destination that is there always: the folder of [publish]."""


class ConfigurationError(Exception):
    """Say in one line which file and key is wrong and what would be right."""


class TrainingSettings(Settings):
    """Say from how many past snapshots to learn, how far apart, with which seed, and how long to look for trees."""

    snapshots: int = Field(default=12, ge=1, le=1_000)
    every_days: float = Field(default=7, ge=DAYS_MIN, le=DAYS_MAX)
    seed: int = Field(default=0, ge=0, le=SEED_MAX)
    trials: int = Field(default=15, ge=1, le=10_000)
    trial_seconds: float = Field(default=60, gt=0, le=SECONDS_MAX)


class SegmentSettings(Settings):
    """Bound discovered segments: their number, the smallest one's share of users, and how alike refits have to be.

    `dwell_margin` says how much nearer another segment has to be before a user leaves one.
    """

    k_min: int = Field(default=3, ge=2, le=50)
    k_max: int = Field(default=8, ge=2, le=50)
    share_min: float = Field(default=SHARE_MIN, ge=0, lt=1)
    stability_min: float = Field(default=STABILITY_MIN, ge=0, le=1)
    dwell_margin: float = Field(default=0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.k_max < self.k_min:
            raise ValueError(f"k_max ({self.k_max}) must be at least k_min ({self.k_min})")
        return self


class StorageSettings(Settings):
    """Say where the lake and MLflow's store are, relative to the configuration."""

    lake: Path = Field(default=Path("lake"), strict=False)
    mlruns: Path = Field(default=Path("mlruns"), strict=False)

    @field_validator("lake", "mlruns", mode="before")
    @classmethod
    def _here(cls, given: Any) -> Any:
        if isinstance(given, str) and "://" in given:
            raise ValueError(f"{given} is elsewhere; name a folder of this machine")
        return given


class EngineSettings(Settings):
    """Say how much memory the engine takes; what is more goes to disk, beside the lake."""

    memory_limit: str | None = Field(default=None, pattern=r"^[1-9]\d*(MB|GB)$")

    @property
    def memory_limit_bytes(self) -> int | None:
        """Return the limit in bytes; None for half of the machine's memory."""
        if self.memory_limit is None:
            return None
        return int(self.memory_limit[:-2]) * {"MB": 10**6, "GB": 10**9}[self.memory_limit[-2:]]


class PublishSettings(Settings):
    """Say where versions are kept as files, and in which formats, for which purposes; who is held out; what is held.

    That folder, relative to the configuration, is a destination as well, and always there: it is called published.
    What is said of an instant to which the newest event is older than `max_lag_days` is held.
    """

    folder: str = "published"
    formats: list[Format] = Field(default=["parquet", "csv"], min_length=1)
    formulas: Formulas = "escape"
    purposes: list[str] | None = None
    holdout_share: float = Field(default=0, ge=0, lt=1)
    max_lag_days: float = Field(default=3, gt=0, le=DAYS_MAX)
    brake: BrakeSettings = BrakeSettings()


class Configuration(Settings):
    """Hold everything that habitus.toml says; paths are relative to its folder."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)
    time_zone: TimeZone = "UTC"
    events: Source
    users: Users | None = None
    sessions: SessionSettings = SessionSettings()
    features: FeatureSettings = FeatureSettings()
    labels: LabelSettings = LabelSettings()
    training: TrainingSettings = TrainingSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    segments: SegmentSettings = SegmentSettings()
    rules: RulesSettings = RulesSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    engine: EngineSettings = EngineSettings()
    storage: StorageSettings = StorageSettings()
    publish: PublishSettings = PublishSettings()
    report: ReportSettings = ReportSettings()
    purposes: Purposes = Field(default_factory=dict)
    destinations: dict[str, AnySettings] = Field(default_factory=dict)
    _file: Path = PrivateAttr(default=Path("habitus.toml"))

    @model_validator(mode="after")
    def _attributes_are_no_features(self) -> Self:
        taken = {"user_id", "as_of", *FAVOURITES, *feature_names(self.features.windows_days), *rfm.WORDS}
        for name in self.attributes:
            if name.lower() in taken:
                raise ValueError(f"users.attributes: {name!r} is the name of a feature; rename the column")
            if OWN.fullmatch(name):
                raise ValueError(f"users.attributes: Habitus has columns called {name!r} itself; rename the column")
            if name.lower().startswith(RESERVED):
                raise ValueError(f"users.attributes: names with {RESERVED!r} are reserved; rename the column {name!r}")
        return self

    @model_validator(mode="after")
    def _users_are_described(self) -> Self:
        if self.users is None:
            for key in self.consent_columns.values():
                raise ValueError(f"{key}: there is no users' file to read it from; add [users]")
        elif not self.users.columns(self.consent_columns):
            raise ValueError("users: says nothing of users; give attributes, email or phone, or remove [users]")
        return self

    @model_validator(mode="after")
    def _labels_are_no_other_columns(self) -> Self:
        taken = {*FAVOURITES, *feature_names(self.features.windows_days), *COLUMNS.values(), *ASSIGNMENTS.schema.names}
        taken |= {"segments", "report", *map(str.lower, self.attributes)}
        for name in self.labels.named:
            if name in taken or OWN.fullmatch(name):
                raise ValueError(f"labels.{name}: is the name of a feature, an attribute or a column; choose another")
        return self

    @model_validator(mode="after")
    def _events_are_named_as_mapped(self) -> Self:
        named = {f"labels.{name}.events": label.events for name, label in self.labels.named.items()}
        for name, purpose in self.purposes.items():
            named[f"purposes.{name}.granted_by"] = tuple(purpose.granted_by)
            named[f"purposes.{name}.withdrawn_by"] = tuple(purpose.withdrawn_by)
        for key, names in named.items():
            check_names(key, names, self.events.names)
        return self

    @model_validator(mode="after")
    def _rules_are_about_features(self) -> Self:
        for rule in self.rules.rules:
            if OWN.fullmatch(rule.name):
                raise ValueError(f"rules.{rule.name}: is a name that Habitus uses itself; choose another")
        texts: dict[str, Kind] = dict.fromkeys((*FAVOURITES, *self.attributes), "text")
        numbers: dict[str, Kind] = dict.fromkeys(feature_names(self.features.windows_days), "number")
        self.rules.check(texts | numbers)
        return self

    @model_validator(mode="after")
    def _destinations_have_purposes(self) -> Self:
        for name in self.destinations:
            if not NAME.fullmatch(name) or name == LOCAL:
                raise ValueError(
                    f"destinations: {name!r} is no name of one: write small letters, digits and _, a letter first; "
                    f"{LOCAL} is the folder of [publish]"
                )
        check_purposes(self.destinations, self.purposes)
        if self.publish.purposes is None and self.purposes:
            raise ValueError(
                f"publish.purposes: is missing; list those of {', '.join(self.purposes)} that users have to agree to "
                "before they are in the published files, or write purposes = [] if it needs none"
            )
        check_purposes({LOCAL: self._local}, self.purposes)
        return self

    @model_validator(mode="after")
    def _destinations_get_segments_that_there_are(self) -> Self:
        rules = [rule.name for rule in self.rules.rules]
        for name, settings in self.destinations.items():
            shares = settings.holdout_share if isinstance(settings.holdout_share, dict) else {}
            for key, given in (("segments", settings.segments or ()), ("holdout_share", shares)):
                for segment_id in given:
                    if segment_id not in rules and not SEGMENT_ID.fullmatch(segment_id):
                        near = difflib.get_close_matches(segment_id, rules, n=1, cutoff=0.5)
                        meant = (
                            f"did you mean {near[0]}?" if near else f"there are S01, S02, ... and {', '.join(rules)}"
                        )
                        raise ValueError(f"destinations.{name}.{key}: there is no segment {segment_id!r}; {meant}")
        return self

    @model_validator(mode="after")
    def _folders_are_of_one_destination(self) -> Self:
        folders: dict[str, str] = {}
        for name, settings in self.all_destinations.items():
            if isinstance(settings, FolderSettings):
                folder = settings.folder.rstrip("/")
                if folder in folders:
                    raise ValueError(
                        f"destinations.{name}.folder: {folder!r} is that of {folders[folder]}; name another"
                    )
                folders[folder] = name
        return self

    @model_validator(mode="after")
    def _personal_is_known(self) -> Self:
        for name in self.report.personal:
            if name not in (USER_ID, *self.attributes):
                known = ", ".join((USER_ID, *self.attributes))
                raise ValueError(f"report.personal: there is no attribute {name!r}; there are {known}")
        return self

    @property
    def file(self) -> Path:
        """Return the file that was loaded."""
        return self._file

    @property
    def folder(self) -> Path:
        """Return the folder that paths are relative to."""
        return self._file.parent

    @property
    def attributes(self) -> list[str]:
        """List the attributes of users."""
        return self.users.attributes if self.users else []

    @property
    def personal(self) -> list[str]:
        """List the attributes of users that not everybody may see."""
        return sorted(set(self.report.personal) - {USER_ID})

    @property
    def consent_columns(self) -> dict[str, str]:
        """Return the columns of the users' file that purposes name, with the key that does."""
        named = {f"purposes.{name}.attribute": purpose.attribute for name, purpose in self.purposes.items()}
        return {column: key for key, column in named.items() if column is not None}

    @property
    def snapshot_definitions(self) -> dict[str, Any]:
        """Return what `features.snapshots.take_snapshots` has to know beside tables and instants."""
        return {
            "gap": self.sessions.gap,
            "windows_days": self.features.windows_days,
            "attribute_names": self.attributes,
            "time_zone": self.time_zone,
            "day_level": self.events.is_by_day,
        }

    @property
    def lake(self) -> Path:
        """Return the lake's folder."""
        return (self.folder / self.storage.lake).resolve()

    @property
    def mlruns(self) -> Path:
        """Return the folder of MLflow's store."""
        return (self.folder / self.storage.mlruns).resolve()

    @property
    def published(self) -> Path:
        """Return the folder of published versions."""
        return (self.folder / self.publish.folder).resolve()

    @property
    def all_destinations(self) -> dict[str, AnySettings]:
        """Return the settings of all destinations by name, the folder of published versions first."""
        return {LOCAL: self._local, **self.destinations}

    @property
    def _local(self) -> FilesSettings:
        publish = self.publish
        kept = {name: getattr(publish, name) for name in ("folder", "formats", "formulas", "purposes")}
        return FilesSettings(**kept)

    def open_lake(self, engine: str | None = None) -> Lake:
        """Open the lake with an engine, or else the one that HABITUS_ENGINE names; close it, or use it in `with`.

        Raises ConfigurationError where there is no such engine, or the tables are those of another release.
        """
        lake = self.open_any_lake(engine)
        try:
            outdated = find_upgrades(lake)
            if outdated:
                raise ContractError(
                    f"{', '.join(one.table for one in outdated)}: made by an earlier release of Habitus; "
                    f"run `habitus upgrade {self.file}` first"
                )
        except ContractError as error:
            lake.close()
            raise ConfigurationError(str(error)) from error
        return lake

    def open_any_lake(self, engine: str | None = None) -> Lake:
        """Open the lake as `open_lake` does, also one of another release."""
        damage.check(self.lake, self.file)
        match engine or os.environ.get("HABITUS_ENGINE", "duckdb"):
            case "duckdb":
                return Lake(self.lake, self.engine.memory_limit_bytes)
            case "spark":
                try:
                    from features import spark
                except ImportError as error:
                    raise ConfigurationError(
                        f"HABITUS_ENGINE=spark needs `pip install habitus[spark]`: {error}"
                    ) from error
                return Lake(self.lake, engine=spark.connect())
            case other:
                raise ConfigurationError(f"HABITUS_ENGINE={other}: there is no such engine; set duckdb or spark")


def load(file: Path | str) -> Configuration:
    """Read a configuration.

    Raises ConfigurationError for a file that is missing or no TOML, an unknown key, a missing or a wrong value.
    """
    path = Path(os.path.realpath(file))
    text = _read(path, str(file))
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        what = "lists or sections are nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigurationError(f"{file}: is no TOML: {what}") from error
    try:
        configuration = validate(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    configuration._file = path
    return configuration


def validate(given: Mapping[str, Any]) -> Configuration:
    """Make a configuration of sections and keys. Raises ConfigurationError that names the first that is wrong."""
    if key := find_nul(given):
        raise ConfigurationError(f"{key}: has a NUL character in it, which nothing is called by")
    try:
        return Configuration.model_validate(given)
    except ValidationError as error:
        raise ConfigurationError(explain(error, given, Configuration)) from error


def _read(path: Path, named: str) -> str:
    """Read a file's text; a mark that it is UTF-8, as Windows' editors write, does not belong to it."""
    try:
        with path.open("rb") as opened:
            content = opened.read(SIZE_MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise ConfigurationError(f"{named} is a folder; name the habitus.toml in it") from error
    except FileNotFoundError as error:
        raise ConfigurationError(f"{named}: no such file; name the configuration, a habitus.toml") from error
    except OSError as error:
        raise ConfigurationError(f"{named}: cannot be read: {error.strerror}") from error
    if len(content) > SIZE_MAX_BYTES:
        raise ConfigurationError(f"{named}: has more than {SIZE_MAX_BYTES / 1e6:g} MB, which no configuration has")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ConfigurationError(f"{named}: is UTF-16, or no text at all; save it as UTF-8")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{named}: line {line} is not UTF-8; save the file as UTF-8") from error


def parse_as_of(text: str, time_zone: str) -> datetime:
    """Read an instant as people write it: a date, or a date and time; without an offset, in the given zone.

    >>> parse_as_of("2024-06-30", "Europe/London").isoformat()
    '2024-06-30T00:00:00+01:00'
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"as_of {text!r} is no instant: write 2024-06-30, 2024-06-30T05:00 or 2024-06-30T05:00+02:00"
        ) from error
    instant = instant if instant.tzinfo else instant.replace(tzinfo=ZoneInfo(time_zone))
    # Compared without shifting it to UTC, where the first and the last days of the calendar would fall out of it.
    if not FIRST_INSTANT <= instant <= END_OF_INSTANTS:
        raise ConfigurationError(
            f"as_of {text!r} is not between {FIRST_INSTANT:%Y-%m-%d} and {END_OF_INSTANTS:%Y-%m-%d}"
        )
    return instant
