"""The `habitus` command: each stage, and all of them."""

import difflib
import importlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from rich.console import Console

from features.zones import write_instant
from flows.command import complain, main
from flows.configuration import Configuration, ConfigurationError, load, parse_as_of
from flows.one_off import ONE_OFF_SETTINGS
from flows.progress import progress
from flows.turns import turn

WIDTH_MIN = 80
HELD = 3
"""The exit status where the brake held a version."""

app = typer.Typer(
    help="Behavioural segmentation: from raw events to segments and propensities that marketing tools act on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

HERE = Path("habitus.toml")
"""The configuration where none is named."""
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration.")]
ConfigOption = Annotated[Path, typer.Option("--config", metavar="CONFIG", help="The configuration.")]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        help="The instant that the run is about: 2024-06-30 or 2024-06-30T05:00, in the configuration's time zone. "
        "Default: the end of the last whole day in the data.",
        show_default=False,
    ),
]
Rebuild = Annotated[
    bool, typer.Option("--rebuild", help="Read all files again, and make the tables what they hold now.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]


@app.command()
def run(config: Config = HERE, as_of: AsOf = None, as_json: Json = False) -> None:
    """Do everything: ingest, sessions, snapshot, train, score, publish."""
    _start("run", config, as_of, as_json)


@app.command()
def ingest(config: Config = HERE, rebuild: Rebuild = False, as_json: Json = False) -> None:
    """Accept or reject every row of the configured files that are not known yet."""
    _start("ingest", config, None, as_json, rebuild=rebuild)


@app.command()
def sessions(config: Config = HERE, as_json: Json = False) -> None:
    """Group all events into sessions."""
    _start("sessions", config, None, as_json)


@app.command()
def snapshot(config: Config = HERE, as_of: AsOf = None, as_json: Json = False) -> None:
    """Take every user's features now and at past instants, with their labels."""
    _start("snapshot", config, as_of, as_json)


@app.command()
def train(config: Config = HERE, as_of: AsOf = None, as_json: Json = False) -> None:
    """Train, test and promote segments and propensities on the snapshots."""
    _start("train", config, as_of, as_json)


@app.command()
def score(config: Config = HERE, as_of: AsOf = None, as_json: Json = False) -> None:
    """Assign every user of the snapshot to a segment, with probabilities."""
    _start("score", config, as_of, as_json)


@app.command()
def publish(config: Config = HERE, as_of: AsOf = None, as_json: Json = False) -> None:
    """Publish the assignments to all destinations; exit status 3 where the brake holds them."""
    _start("publish", config, as_of, as_json)


@app.command()
def release(
    config: Config,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="What `publish` called it.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Publish a version that the brake held."""
    _start("publish", config, None, as_json, label=label)


@app.command()
def report(config: Config = HERE, as_json: Json = False) -> None:
    """Write the User Segment Report of the present version, as a page, JSON and tables."""
    _start("report", config, None, as_json)


@app.command()
def audit(config: Config = HERE, as_of: AsOf = None, as_json: Json = False) -> None:
    """Look for features that know the future or name a label; exit status 1 where there is one."""
    _quieten()
    flow = importlib.import_module("flows.audit")
    with _complaining(config):
        configuration = load(config)
        instant = _read_instant(as_of, configuration)
        with progress():
            found = flow.audit(configuration, instant)
    if as_json:
        print(importlib.import_module("flows.screen").to_json(found))
    else:
        flow.show(found, _console())
    raise typer.Exit(1 if found.findings else 0)


@app.command()
def preview(
    config: Config = HERE,
    gap: Annotated[
        str | None, typer.Option("--gap", help="The pause that ends a session: 45m, 90s, 1.5h.", show_default=False)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help=r"A setting of \[sessions] or \[features], such as features.windows_days=\[7,30].",
            show_default=False,
        ),
    ] = None,
    as_of: AsOf = None,
    as_json: Json = False,
) -> None:
    """Show what other settings of sessions and features would change, without changing anything."""
    _quieten()
    flow = importlib.import_module("flows.preview")
    with _complaining(config):
        configuration = load(config)
        settings = dict(flow.parse_setting(text) for text in setting or [])
        settings |= {"sessions.gap_minutes": flow.parse_gap(gap)} if gap else {}
        if not settings:
            raise ConfigurationError("name what to preview: --gap 45m, or --set KEY=VALUE")
        instant = _read_instant(as_of, configuration)
        with progress():
            found = flow.preview(configuration, settings, instant)
    if as_json:
        print(importlib.import_module("flows.screen").to_json(found))
    else:
        flow.show(found, _console())


@app.command()
def upgrade(
    config: Config = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the tables of an earlier release to this one; what was ingested stays, and no source file is needed."""
    _quieten()
    flow = importlib.import_module("flows.upgrade")
    with _complaining(config):
        configuration = load(config)
        with progress():
            upgraded = flow.upgrade_lake(configuration, dry_run)
    if as_json:
        print(importlib.import_module("flows.screen").to_json(upgraded))
    else:
        flow.show(upgraded, _console())


@app.command()
def forget(
    users: Annotated[
        list[str] | None, typer.Argument(metavar="USER...", help="The ids of users.", show_default=False)
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from-file",
            metavar="FILE",
            help="Ids, one on each line; in a .jsonl file, as texts in quotes.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = HERE,
    as_json: Json = False,
) -> None:
    """Erase users from all tables, versions and destinations; without any, finish what was begun.

    Exit status 1 where a destination has not removed them yet.
    """
    _quieten()
    with _complaining(config):
        configuration = load(config)
        stage = importlib.import_module("flows.forget")
        named = [*(users or ()), *(stage.read_ids(from_file) if from_file else ())]
        # One turn, so that no model is trained in between that the receipt does not list.
        with progress(), turn(configuration, "forget"):
            if named:
                stage.begin(configuration, named, datetime.now(UTC))
            with importlib.import_module("flows.temporary_server").serving():
                forgotten = stage.forget(config=str(config.resolve()))
    if as_json:
        print(importlib.import_module("flows.screen").to_json(forgotten))
    else:
        stage.show(forgotten, _program(), _console())
    raise typer.Exit(0 if forgotten.is_complete else 1)


class _Shown(typer.core.TyperGroup):
    """Show what there is where no other command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        is_misspelt = bool(difflib.get_close_matches(first, self.commands)) and not Path(first).exists()
        is_named = is_misspelt or first in (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, args if is_named else ["show", *args])


segments_app = typer.Typer(cls=_Shown, help="Show the segments that serve, or give one a name.")
app.add_typer(segments_app, name="segments")


@segments_app.command("show")
def show_segments(config: Config = HERE, as_json: Json = False) -> None:
    """Show the segments that serve: users and share at the training, stability, since when, the last event."""
    _show("segments", "find_segments", config, as_json)


@segments_app.command("rename")
def rename_segment(
    segment_id: Annotated[str, typer.Argument(metavar="ID", help="The segment, such as S03.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name from now on.", show_default=False)],
    config: ConfigOption = HERE,
) -> None:
    """Give a segment a name, which stays with its id through all trainings."""
    _quieten()
    with _complaining(config):
        before = importlib.import_module("flows.segments").rename(load(config), segment_id, name)
    print(f"{segment_id} is {name.strip()} now, and was {before.name}; the next scoring says so")


outbox_app = typer.Typer(cls=_Shown, help="Show what waits to be sent to receivers, or have what failed sent again.")
app.add_typer(outbox_app, name="outbox")


@outbox_app.command("show")
def show_outbox(config: Config = HERE, as_json: Json = False) -> None:
    """Show what waits to be sent, what was sent, and what failed and why."""
    _show("outbox", "find_messages", config, as_json)


@outbox_app.command("retry")
def retry_outbox(
    destination: Annotated[
        str | None, typer.Argument(metavar="DESTINATION", help="Default: all.", show_default=False)
    ] = None,
    config: ConfigOption = HERE,
) -> None:
    """Have what failed sent again by the next publish."""
    _quieten()
    with _complaining(config):
        count = importlib.import_module("flows.outbox").retry(load(config), destination)
    print(f"{count:,} message{'' if count == 1 else 's'} will be sent by the next `{_program()} publish`")


@app.command()
def serve(
    config: Config = HERE,
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Where to listen; 0: a free one.", min=0, max=65535)] = 8080,
    open_local: Annotated[
        bool, typer.Option("--open-local", help="Ask for no key: everyone on this machine sees all.")
    ] = False,
) -> None:
    """Serve the report and the API until Ctrl-C or SIGTERM."""
    _quieten()
    with _complaining(config):
        configuration = load(config)
        flow = importlib.import_module("flows.serve")
        flow.serve(configuration, flow.listen(host, port, open_local))


keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of the API.")
app.add_typer(keys_app, name="keys")


@keys_app.command("create")
def create_key(
    scope: Annotated[
        str,
        typer.Option(
            "--scope",
            help="aggregate: numbers only; lists: users, too, without what is personal; personal: all.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Who it is for.", show_default=False)] = "",
    config: ConfigOption = HERE,
) -> None:
    """Make a key and show it, this once."""
    _quieten()
    with _complaining(config):
        key, secret = importlib.import_module("flows.keys").create(load(config), scope, name)
    print(f"key {key.id} of the scope {key.scope}; nobody can show it again:", file=sys.stderr)
    print(secret)


@keys_app.command("list")
def list_keys(config: ConfigOption = HERE, as_json: Json = False) -> None:
    """List all keys, and when each was used last."""
    _quieten()
    flow = importlib.import_module("flows.keys")
    with _complaining(config):
        configuration = load(config)
        keys = flow.find_keys(configuration)
    if as_json:
        print(importlib.import_module("flows.screen").to_json(keys))
    else:
        flow.show(keys, configuration.time_zone, _console())


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="What `keys list` calls it.", show_default=False)],
    config: ConfigOption = HERE,
) -> None:
    """Let a key be worth nothing from now on."""
    _quieten()
    flow = importlib.import_module("flows.keys")
    with _complaining(config):
        configuration = load(config)
        key = flow.revoke(configuration, key_id)
    since = flow.write_time(key.revoked_at, configuration.time_zone)
    print(f"key {key.id} {key.name} is revoked since {since}".replace("  ", " "))


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The registered model, such as ecom-churn.", show_default=False)
]


@app.command()
def promote(
    name: Name,
    version: Annotated[
        int, typer.Argument(metavar="VERSION", help="The version that is to serve.", show_default=False)
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.", show_default=False)],
    config: ConfigOption = HERE,
) -> None:
    """Let a version of a model serve, whatever the rule decided."""
    _decide(config, name, reason, lambda serving, mlruns: serving.promote(mlruns, name, version, reason))


@app.command()
def rollback(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")] = "rolled back",
    config: ConfigOption = HERE,
) -> None:
    """Let the version of a model serve that did before."""
    _decide(config, name, reason, lambda serving, mlruns: serving.rollback(mlruns, name, reason))


def _decide(config: Path, name: str, reason: str, decide: Callable[[Any, Path], Any]) -> None:
    _quieten()
    with _complaining(config):
        configuration = load(config)
        promotion = decide(importlib.import_module("flows.serving"), configuration.mlruns)
    instead = f" instead of version {promotion.undone}" if promotion.undone else ""
    since = write_instant(promotion.as_of, configuration.time_zone)
    print(f"{name} version {promotion.number} serves{instead}, from {since} on: {reason}")


def _start(stage: str, config: Path, as_of: str | None, as_json: bool, **options: bool | str) -> None:
    """Call a stage's flow, show its progress on standard error and its result on standard output."""
    with _complaining(config):
        instant = _read_instant(as_of, load(config))
        _quieten()
        status = 0
        with progress():
            # Prefect, MLflow and scikit-learn take seconds to import, which a mistake in the configuration need not.
            flow = getattr(importlib.import_module(f"flows.{stage}"), stage)
            held = importlib.import_module("flows.stage").HeldError
            arguments = {"config": str(config.resolve())} | ({"as_of": instant} if instant else {}) | options
            try:
                with importlib.import_module("flows.temporary_server").serving():
                    result = flow(**arguments)
            except held as error:
                result, status = error.result, HELD
    screen = importlib.import_module("flows.screen")
    if as_json:
        print(screen.to_json(result))
    elif stage == "run":
        screen.show(result, str(config), _program(), _console())
    elif stage == "publish":
        screen.show_published(result, str(config), _program(), _console())
    raise typer.Exit(status)


def _read_instant(as_of: str | None, configuration: Configuration) -> datetime | None:
    return None if as_of is None else parse_as_of(as_of, configuration.time_zone)


def _show(module: str, find: str, config: Path, as_json: bool) -> None:
    """Print what a function of a module of flows finds, by that module's `show` or as JSON."""
    _quieten()
    flow = importlib.import_module(f"flows.{module}")
    with _complaining(config):
        found = getattr(flow, find)(load(config))
    if as_json:
        print(importlib.import_module("flows.screen").to_json(found))
    else:
        flow.show(found, _console())


@contextmanager
def _complaining(config: Path) -> Iterator[None]:
    """Show in one line a mistake in what a person wrote, or what is to be put right elsewhere."""
    try:
        yield
    except ConfigurationError as error:
        _end(str(error), 2, config)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        world = importlib.import_module("flows.world")
        said = world.in_discreet_words(error, str(config))
        if isinstance(said, world.UnexpectedError):
            raise
        if isinstance(said, world.MISTAKES):
            _end(world.in_one_line(said), 2, config)
        _end(world.in_one_line(said), 1)


def _end(complaint: str, status: int, config: Path | None = None) -> NoReturn:
    is_named = config is None or complaint.startswith(str(config))
    complain(complaint if is_named else f"{config}: {complaint}")
    raise typer.Exit(status) from None


def _program() -> str:
    """Return what to type for `habitus` here: that, or its path where the environment is not active."""
    return "habitus" if shutil.which("habitus") else os.path.relpath(sys.argv[0])


def _console() -> Console:
    """Return standard output; in a narrow terminal lines wrap, since columns that do not fit would be left out."""
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH_MIN)
    return console


def _quieten() -> None:
    """Keep other programs' messages off the console. Read when Prefect is imported, so before any flow is."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    for name, value in ONE_OFF_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("EventsWorker").setLevel(logging.CRITICAL)  # Prefect's, at the end of a command that failed
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
