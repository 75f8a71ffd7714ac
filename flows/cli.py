"""The `habitus` command: each stage, and all of them."""

import importlib
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.status import Status

from features.lake import LakeInUseError
from features.zones import write_instant
from flows.configuration import ConfigurationError, load, parse_as_of
from flows.one_off import ONE_OFF_SETTINGS

HELD = 3
"""The exit status where the brake held a version."""

app = typer.Typer(
    help="Behavioural segmentation: from raw events to segments and propensities that marketing tools act on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="The configuration, a habitus.toml.", show_default=False)
]
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
def run(config: Config, as_of: AsOf = None, as_json: Json = False) -> None:
    """Do everything: ingest, sessions, snapshot, train, score, publish."""
    _start("run", config, as_of, as_json)


@app.command()
def ingest(config: Config, rebuild: Rebuild = False, as_json: Json = False) -> None:
    """Accept or reject every row of the configured files that are not known yet."""
    _start("ingest", config, None, as_json, rebuild=rebuild)


@app.command()
def sessions(config: Config, as_json: Json = False) -> None:
    """Group all events into sessions."""
    _start("sessions", config, None, as_json)


@app.command()
def snapshot(config: Config, as_of: AsOf = None, as_json: Json = False) -> None:
    """Take every user's features now and at past instants, with their labels."""
    _start("snapshot", config, as_of, as_json)


@app.command()
def train(config: Config, as_of: AsOf = None, as_json: Json = False) -> None:
    """Train, test and promote segments and propensities on the snapshots."""
    _start("train", config, as_of, as_json)


@app.command()
def score(config: Config, as_of: AsOf = None, as_json: Json = False) -> None:
    """Assign every user of the snapshot to a segment, with probabilities."""
    _start("score", config, as_of, as_json)


@app.command()
def publish(config: Config, as_of: AsOf = None, as_json: Json = False) -> None:
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
def report(config: Config, as_json: Json = False) -> None:
    """Write the User Segment Report of the present version, as a page, JSON and tables."""
    _start("report", config, None, as_json)


@app.command()
def audit(config: Config, as_of: AsOf = None, as_json: Json = False) -> None:
    """Look for features that know the future or name a label; exit status 1 where there is one."""
    _quieten()
    flow = importlib.import_module("flows.audit")
    with _complaining(config):
        configuration = load(config)
        instant = parse_as_of(as_of, configuration.time_zone) if as_of else None
        with _progress():
            found = flow.audit(configuration, instant)
    if as_json:
        print(importlib.import_module("flows.screen").to_json(found))
    else:
        flow.show(found, Console(highlight=False))
    raise typer.Exit(1 if found.findings else 0)


@app.command()
def preview(
    config: Config,
    gap: Annotated[
        str | None, typer.Option("--gap", help="The pause that ends a session: 45m, 90s, 1.5h.", show_default=False)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of [sessions] or [features], such as features.windows_days=[7,30].",
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
        instant = parse_as_of(as_of, configuration.time_zone) if as_of else None
        with _progress():
            found = flow.preview(configuration, settings, instant)
    if as_json:
        print(importlib.import_module("flows.screen").to_json(found))
    else:
        flow.show(found, Console(highlight=False))


@app.command()
def upgrade(
    config: Config,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the tables of an earlier release to this one; what was ingested stays, and no source file is needed."""
    _quieten()
    flow = importlib.import_module("flows.upgrade")
    with _complaining(config):
        configuration = load(config)
        with _progress():
            upgraded = flow.upgrade_lake(configuration, dry_run)
    if as_json:
        print(importlib.import_module("flows.screen").to_json(upgraded))
    else:
        flow.show(upgraded, Console(highlight=False))


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
    config: ConfigOption = Path("habitus.toml"),
    as_json: Json = False,
) -> None:
    """Erase users from all tables, versions and destinations; without any, finish what was begun.

    Exit status 1 where a destination has not removed them yet.
    """
    _quieten()
    stage = importlib.import_module("flows.forget")
    world = importlib.import_module("flows.world")
    try:
        configuration = load(config)
        named = [*(users or ()), *(stage.read_ids(from_file) if from_file else ())]
        with _progress():
            if named:
                stage.begin(configuration, named, datetime.now(UTC))
            forgotten = stage.forget(config=str(config.resolve()))
    except (*world.MISTAKES, *world.ELSEWHERE, OSError) as error:
        _complain(str(error) if str(error).startswith(str(config)) else f"{config}: {error}")
        raise typer.Exit(2 if isinstance(error, world.MISTAKES) else 1) from None
    if as_json:
        print(importlib.import_module("flows.screen").to_json(forgotten))
    else:
        stage.show(forgotten, _program(), Console(highlight=False))
    raise typer.Exit(0 if forgotten.is_complete else 1)


class _Shown(typer.core.TyperGroup):
    """Show what there is where no other command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_named = args[:1] and args[0] in (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, args if is_named else ["show", *args])


segments_app = typer.Typer(cls=_Shown, help="Show the segments that serve, or give one a name.")
app.add_typer(segments_app, name="segments")
Here = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration.")]


@segments_app.command("show")
def show_segments(config: Here = Path("habitus.toml"), as_json: Json = False) -> None:
    """Show the segments that serve: users and share at the training, stability, since when, the last event."""
    _show("segments", "find_segments", config, as_json)


@segments_app.command("rename")
def rename_segment(
    segment_id: Annotated[str, typer.Argument(metavar="ID", help="The segment, such as S03.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name from now on.", show_default=False)],
    config: ConfigOption = Path("habitus.toml"),
) -> None:
    """Give a segment a name, which stays with its id through all trainings."""
    _quieten()
    with _complaining(config):
        before = importlib.import_module("flows.segments").rename(load(config), segment_id, name)
    print(f"{segment_id} is {name.strip()} now, and was {before.name}; the next scoring says so")


outbox_app = typer.Typer(cls=_Shown, help="Show what waits to be sent to receivers, or have what failed sent again.")
app.add_typer(outbox_app, name="outbox")


@outbox_app.command("show")
def show_outbox(config: Here = Path("habitus.toml"), as_json: Json = False) -> None:
    """Show what waits to be sent, what was sent, and what failed and why."""
    _show("outbox", "find_messages", config, as_json)


@outbox_app.command("retry")
def retry_outbox(
    destination: Annotated[
        str | None, typer.Argument(metavar="DESTINATION", help="Default: all.", show_default=False)
    ] = None,
    config: ConfigOption = Path("habitus.toml"),
) -> None:
    """Have what failed sent again by the next publish."""
    _quieten()
    with _complaining(config):
        count = importlib.import_module("flows.outbox").retry(load(config), destination)
    print(f"{count:,} message{'' if count == 1 else 's'} will be sent by the next `{_program()} publish`")


@app.command()
def serve(
    config: Config,
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
    config: ConfigOption = Path("habitus.toml"),
) -> None:
    """Make a key and show it, this once."""
    _quieten()
    with _complaining(config):
        key, secret = importlib.import_module("flows.keys").create(load(config), scope, name)
    print(f"key {key.id} of the scope {key.scope}; nobody can show it again:", file=sys.stderr)
    print(secret)


@keys_app.command("list")
def list_keys(config: ConfigOption = Path("habitus.toml"), as_json: Json = False) -> None:
    """List all keys, and when each was used last."""
    _show("keys", "find_keys", config, as_json)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="What `keys list` calls it.", show_default=False)],
    config: ConfigOption = Path("habitus.toml"),
) -> None:
    """Let a key be worth nothing from now on."""
    _quieten()
    with _complaining(config):
        key = importlib.import_module("flows.keys").revoke(load(config), key_id)
    print(f"key {key.id} {key.name} is revoked since {key.revoked_at}".replace("  ", " "))


Name = Annotated[str, typer.Argument(help="The registered model, such as ecom-churn.", show_default=False)]


@app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="The version that is to serve.", show_default=False)],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.", show_default=False)],
    config: ConfigOption = Path("habitus.toml"),
) -> None:
    """Let a version of a model serve, whatever the rule decided."""
    _decide(config, name, reason, lambda serving, mlruns: serving.promote(mlruns, name, version, reason))


@app.command()
def rollback(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")] = "rolled back",
    config: ConfigOption = Path("habitus.toml"),
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


def main() -> None:
    """Run the command; a mistake in what a person wrote is one line and exit status 2."""
    try:
        app()
    except KeyboardInterrupt:
        _complain("stopped; nothing is half-written, run the same command again")
        sys.exit(130)


def _start(stage: str, config: Path, as_of: str | None, as_json: bool, **options: bool | str) -> None:
    """Call a stage's flow, show its progress on standard error and its result on standard output."""
    try:
        configuration = load(config)
        instant = parse_as_of(as_of, configuration.time_zone) if as_of else None
    except ConfigurationError as error:
        _complain(str(error))
        raise typer.Exit(2) from None
    _quieten()
    with _progress():
        # Prefect, MLflow and scikit-learn take seconds to import, which a mistake in the configuration need not.
        flow = getattr(importlib.import_module(f"flows.{stage}"), stage)
        world = importlib.import_module("flows.world")
        arguments = {"config": str(config.resolve())} | ({"as_of": instant} if instant else {}) | options
        held = importlib.import_module("flows.stage").HeldError
        complaint, status = "", 0
        try:
            result = flow(**arguments)
        except held as error:
            result, status = error.result, HELD
        except world.MISTAKES as error:
            complaint, status = f"{config}: {error}", 2
        except (*world.ELSEWHERE, OSError) as error:  # a full disk, a folder without permission
            complaint, status = str(error), 1
    if complaint:
        _complain(complaint)
        raise typer.Exit(status)
    screen = importlib.import_module("flows.screen")
    if as_json:
        print(screen.to_json(result))
    elif stage == "run":
        screen.show(result, str(config), _program(), Console(highlight=False))
    elif stage == "publish":
        screen.show_published(result, str(config), _program(), Console(highlight=False))
    raise typer.Exit(status)


def _show(module: str, find: str, config: Path, as_json: bool) -> None:
    """Print what a function of a module of flows finds, by that module's `show` or as JSON."""
    _quieten()
    flow = importlib.import_module(f"flows.{module}")
    with _complaining(config):
        found = getattr(flow, find)(load(config))
    if as_json:
        print(importlib.import_module("flows.screen").to_json(found))
    else:
        flow.show(found, Console(highlight=False))


@contextmanager
def _complaining(config: Path) -> Iterator[None]:
    """Show a mistake in what a person wrote as one line, or that others are at work on the lake."""
    try:
        yield
    except ConfigurationError as error:
        _complain(str(error) if str(error).startswith(str(config)) else f"{config}: {error}")
        raise typer.Exit(2) from None
    except LakeInUseError as error:
        _complain(str(error))
        raise typer.Exit(1) from None


def _program() -> str:
    """Return what to type for `habitus` here: that, or its path where the environment is not active."""
    return "habitus" if shutil.which("habitus") else os.path.relpath(sys.argv[0])


def _complain(message: str) -> None:
    print(f"habitus: {' '.join(message.split())}", file=sys.stderr)


def _quieten() -> None:
    """Keep other programs' messages off the console. Read when Prefect is imported, so before any flow is."""
    for name, value in ONE_OFF_SETTINGS.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")


class _Lines(logging.Handler):
    """Print what is done, with the seconds since the line before; show what is being done (debug) while it is."""

    def __init__(self, console: Console, status: Status) -> None:
        super().__init__()
        self.console = console
        self.status = status
        self.before = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO:
            self.status.update(record.getMessage())
            return
        now = time.monotonic()
        self.console.print(f"{now - self.before:6.1f} s  {record.getMessage()}", soft_wrap=True, markup=False)
        self.before = now


@contextmanager
def _progress() -> Iterator[None]:
    """Print a line for each stage that is done, and show that work goes on."""
    console = Console(stderr=True, highlight=False)
    logger = logging.getLogger("habitus")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    with console.status("starting") as status:
        lines = _Lines(console, status)
        logger.addHandler(lines)
        try:
            yield
        finally:
            logger.removeHandler(lines)


if __name__ == "__main__":
    main()
