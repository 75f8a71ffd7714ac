"""Make the lakes of a release, as two shops leave them; see tests/data/lakes."""

import argparse
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

CONFIG = """
name = "shop"
time_zone = "Europe/Berlin"
[events]
files = "*.{suffix}"
[events.columns]
user_id = "user"
occurred_at = "at"
event_name = "event"
page = "page"
item_id = "product"
quantity = "pieces"
revenue = "amount"
device = "device"
properties = "more"
[events.names]
buy = "purchase"
view = "page_view"
[users]
files = "users/*.csv"
user_id = "user"
attributes = ["plan", "region"]
email = "mail"
[features]
windows_days = [7, 28]
"""
COLUMNS = ("user", "at", "event", "page", "product", "pieces", "amount", "device", "more")
USERS = ("ada", "ben", "cleo", "dan", "eve", "fay")
DAYS = (1, 2, 5, 8, 9, 14, 20, 21, 30, 31)
"""Of March 2024; on the last one the clocks change."""
FILES = {"march-1": (1, 2, 5), "march-2": (5, 8, 9, 14), "march-3": (14, 20, 21, 30, 31)}
"""What is in each file by day: what two have in common is in both."""
LATE = "march-2"
"""What is ingested after the others."""
BROKEN = (
    ",2024-03-02 10:00:00,view,/home,,,,phone,",
    "ada,yesterday,view,/home,,,,phone,",
    "ada,2024-03-02 10:00:00,,/home,,,,phone,",
    "ben,2024-03-02 11:00:00,buy,/cart,p1,two,9.95,phone,",
)


def draw_visits() -> dict[int, list[dict[str, object]]]:
    """Draw rows by day: some users look at pages, and some buy."""
    chance = random.Random(7)
    rows: dict[int, list[dict[str, object]]] = {}
    for day in DAYS:
        rows[day] = []
        for user in sorted(chance.sample(USERS, 4)):
            at = datetime(2024, 3, day, chance.randint(6, 23), chance.randint(0, 59), chance.randint(0, 59))
            for number in range(chance.randint(1, 4)):
                row: dict[str, object] = {
                    "user": user,
                    "at": f"{at}",
                    "event": "view",
                    "page": f"/{number}",
                    "device": "phone",
                }
                if chance.random() < 0.3:
                    amount = chance.randint(100, 9999) / 100
                    row |= {"event": "buy", "product": f"p{chance.randint(1, 3)}", "pieces": 1, "amount": amount}
                rows[day].append(row)
                at += timedelta(seconds=chance.randint(5, 2400))
    return rows


def write_files(folder: Path, suffix: str) -> None:
    """Write the configuration, the files of events and those of users."""
    (folder / "users").mkdir(parents=True)
    (folder / "habitus.toml").write_text(CONFIG.replace("{suffix}", suffix))
    told = [f"{user},{'pro' if number % 2 else 'free'},North,{user}@example.com" for number, user in enumerate(USERS)]
    (folder / "users" / "users.csv").write_text("\n".join(["user,plan,region,mail", *told]) + "\n")
    visits = draw_visits()
    for name, days in FILES.items():
        rows = [row for day in days for row in visits[day]]
        rows += rows[-2:]  # sent twice, and so two events
        if suffix == "csv":
            lines = [",".join(COLUMNS), *(",".join(str(row.get(column, "")) for column in COLUMNS) for row in rows)]
            lines += BROKEN
        else:
            lines = [json.dumps(row | {"more": {"campaign": "spring", "rank": len(row)}}) for row in rows]
            lines += ["{not JSON", json.dumps(rows[0] | {"user": None})]
        (folder / f"{name}.{suffix}").write_text("\n".join(lines) + "\n")


def run(folder: Path, command: str, *arguments: str) -> None:
    """Run a `habitus` command in a folder."""
    environment = os.environ | {"PREFECT_HOME": str(folder.parent / "prefect")}
    program = [sys.executable, "-m", "flows.cli", command, *arguments]
    subprocess.run(program, cwd=folder, env=environment, check=True)


def make(folder: Path, suffix: str) -> None:
    """Ingest in two batches; the shop with CSV files goes on to publish what is known of users, and forgets one."""
    write_files(folder, suffix)
    late = folder / f"{LATE}.{suffix}"
    late.rename(folder / LATE)
    for _ in range(2):
        run(folder, "ingest", "habitus.toml")
        run(folder, "sessions", "habitus.toml")
        if not late.exists():
            (folder / LATE).rename(late)
    if suffix == "csv":
        for stage in ("snapshot", "score", "publish"):
            run(folder, stage, "habitus.toml")
        run(folder, "forget", "eve")


def main() -> None:
    """Pack the folders of both shops: the files, the configuration and the lake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    archive: Path = parser.parse_args().archive
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive, "w:gz") as packed:
        for suffix in ("csv", "jsonl"):
            shop = Path(folder) / suffix
            make(shop, suffix)
            for path in (shop / "habitus.toml", *sorted(shop.glob(f"*.{suffix}")), shop / "users", shop / "lake"):
                packed.add(path, path.relative_to(folder))


if __name__ == "__main__":
    main()
