"""habitus.toml: the one file that says where events are, what they mean, and where segments go."""

import difflib
import os
import re
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any, Self, get_origin
from zoneinfo import ZoneInfo

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from features.event_names import check_names
from features.labels import COLUMNS, LABEL_KIND, ChurnSettings, LabelSettings
from features.lake import Lake
from features.sessions import SessionSettings
from features.snapshots import FAVOURITES, FeatureSettings, feature_names
from features.sources import RESERVED, Settings, Source, TimeZone, Users
from features.table import ContractError
from features.upgrades import find_upgrades
from models.clusters import SHARE_MIN, STABILITY_MIN
from models.conditions import Kind
from models.evaluation import CalibrationSettings
from models.lifecycle import LifecycleSettings
from models.rules import RuleSettings, RulesSettings
from publish.assignments import ASSIGNMENTS
from publish.brake import BrakeSettings
from publish.consents import Purposes, check_purposes
from publish.destination import NAME
from publish.destinations import KINDS, AnySettings
from publish.destinations.files import FilesSettings, Format
from publish.destinations.folders import FolderSettings
from publish.formulas import Formulas
from publish.report.settings import USER_ID, ReportSettings

SEGMENT_ID = re.compile(r"S\d{2,}")
"""Of discovered segments."""
LOCAL = "published"
"""The destination that is there always: the folder of [publish]."""


class ConfigurationError(Exception):
    """Say in one line which file and key is wrong and what would be right."""


class TrainingSettings(Settings):
    """Say from how many past snapshots to learn, how far apart, with which seed, and how long to look for trees."""

    snapshots: int = Field(default=12, ge=1)
    every_days: float = Field(default=7, gt=0)
    seed: int = 0
    trials: int = Field(default=15, ge=1)
    trial_seconds: float = Field(default=60, gt=0)


class SegmentSettings(Settings):
    """Bound discovered segments: their number, the smallest one's share of users, and how alike refits have to be.

    `dwell_margin` says how much nearer another segment has to be before a user leaves one.
    """

    k_min: int = Field(default=3, ge=2)
    k_max: int = Field(default=8, le=50)
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

    lake: Path = Path("lake")
    mlruns: Path = Path("mlruns")


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
    max_lag_days: float = Field(default=3, gt=0)
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
        taken = {"user_id", "as_of", *FAVOURITES, *feature_names(self.features.windows_days)}
        for name in self.attributes:
            if name.lower() in taken:
                raise ValueError(f"users.attributes: {name!r} is the name of a feature; rename the column")
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
        taken |= {"segments", *map(str.lower, self.attributes)}
        for name in self.labels.named:
            if name in taken:
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
    path = Path(file).resolve()
    try:
        with path.open("rb") as opened:
            given = tomllib.load(opened)
    except IsADirectoryError as error:
        raise ConfigurationError(f"{file} is a folder; name the habitus.toml in it") from error
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: is no TOML: {error}") from error
    try:
        configuration = Configuration.model_validate(given)
    except ValidationError as error:
        raise ConfigurationError(f"{file}: {explain(error)}") from error
    configuration._file = path
    return configuration


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
    return instant if instant.tzinfo else instant.replace(tzinfo=ZoneInfo(time_zone))


def explain(error: ValidationError) -> str:
    """Say what the first mistake is and what would be right."""
    details = error.errors()
    # An unknown key explains a missing one (it is often the same, misspelt), our own words explain most.
    rank = {"extra_forbidden": 0, "value_error": 1}
    first = min(details, key=lambda detail: rank.get(detail["type"], 2))
    # Of a union pydantic reports every member; what is in the file is the key up to there.
    location = [str(part) for part in first["loc"] if str(part).islower() and "[" not in str(part) and part != "str"]
    section: type[BaseModel] = Configuration
    if location[:1] == ["destinations"] and len(location) > 2:
        section = KINDS[location.pop(2)]  # its kind, which pydantic takes for a part of the place
    key = ".".join(location)
    match first["type"]:
        case "extra_forbidden":
            return _explain_unknown(location, section)
        case error_type if error_type == LABEL_KIND:
            return _explain_label(location, first["input"], first["msg"])
        case "model_type" if location[0] == "rules" and len(location) == 2:
            return _explain_unknown(location, section)
        case "union_tag_not_found" | "union_tag_invalid" | "model_attributes_type":
            return _explain_kind(key, first["input"])
        case "missing":
            return f"{key}: is missing"
        case "value_error":
            return (f"{key}: " if key else "") + first["msg"].removeprefix("Value error, ")
        case _:
            return f"{key}: {first['input']!r} is wrong: {first['msg'][0].lower()}{first['msg'][1:]}"


def _explain_kind(key: str, given: Any) -> str:
    """Say what is wrong with the section of a destination that does not say of which kind it is."""
    if not isinstance(given, dict):
        return f"{key}: {given!r} is in no destination's section: write it under [destinations.NAME]"
    kind, near = given.get("kind"), ""
    if kind is not None:
        matches = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.5)
        near = f" (did you mean {matches[0]}?)" if matches else ""
    return f"{key}.kind: {'is missing' if kind is None else f'{kind!r} is none'}{near}; there are {', '.join(KINDS)}"


def _explain_unknown(location: list[str], section: type[BaseModel]) -> str:
    """Say what is there instead of a key: of the configuration, or of a destination's section."""
    known = _keys_at(Configuration, location[:-1]) if section is Configuration else _keys_at(section, location[2:-1])
    near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    right = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{'.'.join(location)}: no such key; {right}"


def _explain_label(location: list[str], given: Any, right: str) -> str:
    """Say what is wrong with a section that would be a label, or with a key of [labels] that is none."""
    key = ".".join(location)
    if not isinstance(given, dict):
        return _explain_unknown(location, Configuration)
    if "kind" in given:
        return f"{key}.kind: {given['kind']!r} is wrong: {right}"
    near = difflib.get_close_matches(location[-1], COLUMNS, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{key}: {meant}a label of its own needs a kind: {right}"


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """List the keys that a section may have."""
    parts = iter(location)
    for part in parts:
        if part not in model.model_fields:  # a section whose name is free
            return list((RuleSettings if model is RulesSettings else ChurnSettings).model_fields)
        annotation: Any = model.model_fields[part].annotation
        if get_origin(annotation) is dict:  # sections whose names are free
            next(parts, None)
        members = [annotation, *getattr(annotation, "__args__", ())]
        models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
