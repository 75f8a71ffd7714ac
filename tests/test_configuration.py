import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.configuration import Configuration, ConfigurationError, load, parse_as_of
from publish.consents import PurposeSettings

SMALLEST = """
name = "shop"
[events]
files = "events.csv"
[events.columns]
user_id = "user"
occurred_at = "time"
event_name = "event"
"""
HOUSE = Path(__file__).parents[1]


def load_text(folder: Path, text: str | bytes) -> Configuration:
    file = folder / "habitus.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file)


def mistake(folder: Path, text: str | bytes) -> str:
    """Return what is said of a mistake: one line that begins with the file."""
    with pytest.raises(ConfigurationError) as caught:
        load_text(folder, text)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{folder / 'habitus.toml'}: ")
    return said.removeprefix(f"{folder / 'habitus.toml'}: ")


# --- what is right ---


def test_the_smallest_configuration_has_defaults_for_all_else(tmp_path: Path) -> None:
    shop = load_text(tmp_path, SMALLEST)
    assert (shop.name, shop.time_zone, shop.events.time_unit) == ("shop", "UTC", "iso")
    assert shop.sessions.gap == timedelta(minutes=30)
    assert shop.labels.reach == timedelta(days=28)
    assert shop.labels.conversion.events == ["purchase"]
    assert shop.publish.holdout_share == 0
    assert shop.attributes == []


def test_paths_are_relative_to_the_configuration(tmp_path: Path) -> None:
    shop = load_text(tmp_path, SMALLEST + '[storage]\nlake = "../lake"\n[publish]\nfolder = "/srv/out"\n')
    assert shop.folder == tmp_path
    assert shop.lake == tmp_path.parent / "lake"
    assert shop.mlruns == tmp_path / "mlruns"
    assert shop.published == Path("/srv/out")


def test_a_configuration_knows_its_file_however_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_text(tmp_path, SMALLEST)
    monkeypatch.chdir(tmp_path)
    assert load("habitus.toml").file == tmp_path / "habitus.toml"


def test_a_column_may_be_named_computed_or_made_of_several(tmp_path: Path) -> None:
    columns = 'event_id = ["user", "time"]\npage = { sql = "lower(url)" }\nsource = { value = "shop" }\n'
    mapped = load_text(tmp_path, SMALLEST + columns).events.columns.mapped()
    assert list(mapped) == ["user_id", "occurred_at", "event_name", "event_id", "page", "source"]


def test_attributes_are_those_of_users(tmp_path: Path) -> None:
    users = '[users]\nfiles = "users.csv"\nuser_id = "id"\nattributes = ["plan", "age_band"]\n'
    assert load_text(tmp_path, SMALLEST + users).attributes == ["plan", "age_band"]


def test_a_configuration_does_not_change_after_loading(tmp_path: Path) -> None:
    shop = load_text(tmp_path, SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        shop.name = "other"


@pytest.mark.parametrize("file", sorted((HOUSE / "examples").glob("*/habitus.toml")), ids=lambda file: file.parent.name)
def test_the_examples_are_right(file: Path) -> None:
    assert load(file).file == file


@pytest.mark.parametrize("file", sorted((HOUSE / "tests/data/sources").glob("*.toml")), ids=lambda file: file.stem)
def test_the_configurations_of_other_tools_are_right(file: Path) -> None:
    assert load(file).name == file.stem


# --- names of events ---

MAPPED = SMALLEST + '[events.names]\n"Order Completed" = "purchase"\nopen = "close"\nclose = "closed"\n'


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ('[labels.churn]\nevents = ["login", "Order Completed"]', "labels.churn.events"),
        ('[labels.conversion]\nevents = ["Order Completed"]', "labels.conversion.events"),
        ('[labels.silent]\nkind = "churn"\nevents = ["Order Completed"]', "labels.silent.events"),
        ('[purposes.news]\ngranted_by = ["Order Completed"]', "purposes.news.granted_by"),
        ('[purposes.news]\nmissing = "yes"\nwithdrawn_by = ["Order Completed"]', "purposes.news.withdrawn_by"),
    ],
)
def test_an_event_is_named_as_it_is_mapped_and_not_as_the_source_does(tmp_path: Path, section: str, key: str) -> None:
    assert mistake(tmp_path, f"{MAPPED}[publish]\npurposes = []\n{section}\n") == (
        f"{key}: [events.names] makes 'purchase' of 'Order Completed'; write 'purchase'"
    )


def test_a_name_that_another_is_mapped_to_may_be_named(tmp_path: Path) -> None:
    label = '[labels.churn]\nevents = ["close", "purchase", "never mapped"]\n'

    assert load_text(tmp_path, MAPPED + label).labels.churn.events == ["close", "purchase", "never mapped"]


# --- what is wrong with the file ---


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nope\.toml: no such file; name the configuration, a habitus\.toml$"):
        load(tmp_path / "nope.toml")


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r" is a folder; name the habitus\.toml in it$"):
        load(tmp_path)


def test_text_that_is_no_toml_is_told_with_its_place(tmp_path: Path) -> None:
    assert mistake(tmp_path, "name = shop\n").startswith("is no TOML: ")
    assert "line 3" in mistake(tmp_path, 'name = "shop"\n\n[events\n')


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    assert mistake(tmp_path, b'name = "J\xf6rg"\n') == ("line 1 is not UTF-8; save the file as UTF-8")


# --- what is wrong with a key ---


def test_an_empty_file_lacks_the_first_key(tmp_path: Path) -> None:
    assert mistake(tmp_path, "") == "name: is missing"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('name = "shop"', "name: is missing"),
        ('files = "events.csv"', "events.files: is missing"),
        ('user_id = "user"', "events.columns.user_id: is missing"),
        ('occurred_at = "time"', "events.columns.occurred_at: is missing"),
        ('event_name = "event"', "events.columns.event_name: is missing"),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, line: str, said: str) -> None:
    assert line in SMALLEST
    assert mistake(tmp_path, SMALLEST.replace(line, "")) == said


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('name = "shop"', 'nam = "shop"', "nam: no such key; did you mean name?"),
        ("[events]", "[events]\nfile = 1", "events.file: no such key; did you mean files?"),
        ('user_id = "user"', 'user = "user"', "events.columns.user: no such key; did you mean user_id?"),
        ("user_id =", 'revenu = "r"\nuser_id =', "events.columns.revenu: no such key; did you mean revenue?"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_one(tmp_path: Path, right: str, wrong: str, said: str) -> None:
    assert mistake(tmp_path, SMALLEST.replace(right, wrong)) == said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[session]\n", "session: no such key; did you mean sessions?"),
        ("[sessions]\ngap = 30\n", "sessions.gap: no such key; there are gap_minutes"),
        ("[labels.churn]\nhorizon = 28\n", "labels.churn.horizon: no such key; did you mean horizon_days?"),
        ("[labels]\ndelay = 2\n", "labels.delay: no such key; did you mean delay_days?"),
        ("[users]\nuser = 1\n", "users.user: no such key; did you mean user_id?"),
        ("[publish.brake]\naudience = 1\n", "publish.brake.audience: no such key; did you mean audience_min?"),
        ('page = { sq = "url" }\n', "events.columns.page.sq: no such key; did you mean sql?"),
    ],
)
def test_an_unknown_key_of_a_section_is_told_with_the_nearest_one(tmp_path: Path, more: str, said: str) -> None:
    assert mistake(tmp_path, SMALLEST + more) == said


# --- labels by name ---

NO_PURCHASE = """
[labels.no_purchase_90d]
kind = "churn"
horizon_days = 90
events = ["purchase"]
eligible_days = 90
eligible_by = "purchase_recency_days"
"""
WRITE_KIND = 'write kind = "churn" (none of the events) or "conversion" (at least one of them)'


def test_a_section_of_any_other_name_is_a_label_of_its_own(tmp_path: Path) -> None:
    labels = load_text(tmp_path, SMALLEST + NO_PURCHASE + '[labels.trial]\nkind = "conversion"\n').labels

    assert list(labels.named) == ["churn", "conversion", "no_purchase_90d", "trial"]
    assert labels.named["no_purchase_90d"].eligible_by == "purchase_recency_days"
    assert labels.reach == timedelta(days=90)


def test_what_a_label_leaves_out_is_as_in_churn_or_conversion(tmp_path: Path) -> None:
    more = '[labels.silent]\nkind = "churn"\n[labels.bought]\nkind = "conversion"\n'
    labels = load_text(tmp_path, SMALLEST + more).labels.named

    assert replace(labels["silent"], name="churn") == labels["churn"]
    assert replace(labels["bought"], name="conversion") == labels["conversion"]


def test_a_configuration_with_labels_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    shop = load_text(tmp_path, SMALLEST + NO_PURCHASE)

    assert Configuration.model_validate(shop.model_dump()).labels.named == shop.labels.named


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[labels.churns]\n", f"labels.churns: did you mean churn? a label of its own needs a kind: {WRITE_KIND}"),
        ("[labels.quiet]\nhorizon_days = 7\n", f"labels.quiet: a label of its own needs a kind: {WRITE_KIND}"),
        ('[labels.quiet]\nkind = "chrun"\n', f"labels.quiet.kind: 'chrun' is wrong: {WRITE_KIND}"),
        ('[labels.churn]\nkind = "conversion"\n', "labels.churn.kind: 'conversion' is wrong: it must be 'churn'"),
        (
            '[labels.quiet]\nkind = "churn"\nhorizon = 7\n',
            "labels.quiet.horizon: no such key; did you mean horizon_days?",
        ),
        (
            '[labels.quiet]\nkind = "churn"\nhorizon_days = 0\n',
            "labels.quiet.horizon_days: 0 is wrong: it must be at least 0.01",
        ),
        (
            '[labels.trial]\nkind = "conversion"\nevents = []\n',
            "labels.trial.events: [] is wrong: it must not be empty",
        ),
        (
            '[labels.quiet]\nkind = "churn"\neligible_by = "recency"\n',
            "labels.quiet.eligible_by: 'recency' is wrong: it must be 'recency_days', 'tenure_days', "
            "'cart_abandoned_recency_days', 'support_recency_days' or 'purchase_recency_days'",
        ),
        (
            '[labels.7_days]\nkind = "churn"\n',
            "labels: '7_days' is no name of a label: write small letters, digits and _, a letter first",
        ),
    ],
)
def test_a_wrong_label_is_told_with_what_would_be_right(tmp_path: Path, more: str, said: str) -> None:
    assert mistake(tmp_path, SMALLEST + more) == said


# --- rules by name ---

AGES = '[users]\nfiles = "users.csv"\nuser_id = "id"\nattributes = ["age_band"]\n'


def test_a_rule_is_about_features_of_the_configured_windows_and_attributes(tmp_path: Path) -> None:
    condition = "session_count_14d >= p90 and age_band = '30' and device is not null"
    more = f'{AGES}[features]\nwindows_days = [14]\n[rules.vip]\ncondition = "{condition}"\n'

    assert load_text(tmp_path, SMALLEST + more).rules.rules[-1].condition == condition


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            '[rules.vip]\ncondition = "revenu_total > 3"\n',
            "rules.vip.condition: column 1: there is no feature revenu_total; did you mean revenue_total?",
        ),
        (
            '[rules.vip]\ncondition = "session_count_14d > 3"\n',
            "rules.vip.condition: column 1: there is no feature session_count_14d; did you mean session_count_1d?",
        ),
        (
            '[rules.dormant]\ncondition = "recency_days > 3 and device > 3"\n',
            "rules.dormant.condition: column 22: device is a text: compare it with =, !=, in or is null",
        ),
        (
            '[rules.vip]\ncondition = "recency_days > 3;"\n',
            "rules.vip.condition: column 17: ';' means nothing here",
        ),
        (
            "[rules.vip]\ncondition = 3\n",
            "rules.vip.condition: 3 is wrong: it must be a text, in quotes",
        ),
        ('[rules.vip]\nconditon = "a = 1"\n', "rules.vip.conditon: no such key; did you mean condition?"),
        ("[rules]\nuser_min = 3\n", "rules.user_min: no such key; did you mean users_min?"),
        (
            "[rules.dormnt]\nenabled = false\n",
            "rules: dormnt: did you mean dormant? a rule of your own needs a condition",
        ),
        ("[lifecycle]\nnew = 3\n", "lifecycle.new: no such key; did you mean new_days?"),
        (
            "[lifecycle]\nactive_days = 30\n",
            "lifecycle: active_days, cooling_days and dormant_days must ascend, and are 30, 28 and 90",
        ),
    ],
)
def test_a_wrong_rule_is_told_with_what_would_be_right(tmp_path: Path, more: str, said: str) -> None:
    assert mistake(tmp_path, SMALLEST + more) == said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[purposes.ads]\ngrantd_by = ["on"]\n', "purposes.ads.grantd_by: no such key; did you mean granted_by?"),
        ('[purposes.missing]\nattribut = "x"\n', "purposes.missing.attribut: no such key; did you mean attribute?"),
        (
            '[purposes]\nattribute = "newsletter"\n',
            "purposes: 'attribute' is in no purpose's section: write it under [purposes.NAME]",
        ),
        (
            '[purposes.Ads]\ngranted_by = ["on"]\n',
            "purposes: 'Ads' is no name of a purpose: write small letters, digits and _, a letter first",
        ),
        ("[purposes]\nads = true\n", "purposes: 'ads' is in no purpose's section: write it under [purposes.NAME]"),
        (
            "[purposes.ads]\n",
            'purposes.ads: give either attribute = "column of the users\' file" or granted_by = ["event"] and '
            'withdrawn_by = ["event"]; neither is given',
        ),
        (
            '[purposes.ads]\ngranted_by = ["on"]\nmissing = false\n',
            "purposes.ads.missing: false is wrong: it must be 'no' or 'yes'",
        ),
    ],
)
def test_a_wrong_purpose_is_told_with_what_would_be_right(tmp_path: Path, more: str, said: str) -> None:
    assert mistake(tmp_path, SMALLEST + more) == said


USERS = '[users]\nfiles = "users.csv"\nuser_id = "id"\n'
NEWS = '[purposes.news]\nattribute = "newsletter"\n'


def test_contacts_and_consents_are_no_attributes(tmp_path: Path) -> None:
    shop = load_text(tmp_path, f'{SMALLEST}{USERS}email = "mail"\n{NEWS}[publish]\npurposes = ["news"]\n')
    assert shop.attributes == []
    assert Configuration.model_validate(shop.model_dump()).model_dump() == shop.model_dump()  # as a preview does
    assert shop.consent_columns == {"newsletter": "purposes.news.attribute"}


@pytest.mark.parametrize("feature", ["email", "mail", "newsletter", "habitus.email", "habitus.consent.newsletter"])
def test_no_rule_can_be_about_a_contact_or_a_consent(tmp_path: Path, feature: str) -> None:
    rule = f"[rules.reached]\ncondition = \"{feature} = 'yes'\"\n"
    assert mistake(tmp_path, f'{SMALLEST}{USERS}email = "mail"\n{NEWS}{rule}').startswith("rules.reached.condition: ")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (NEWS, "purposes.news.attribute: there is no users' file to read it from; add [users]"),
        (USERS, "users: says nothing of users; give attributes, email or phone, or remove [users]"),
        (f'{USERS}emial = "mail"\n', "users.emial: no such key; did you mean email?"),
    ],
)
def test_a_users_file_is_there_for_something(tmp_path: Path, more: str, said: str) -> None:
    assert mistake(tmp_path, SMALLEST + more) == said


def test_purposes_are_read_by_name(tmp_path: Path) -> None:
    text = '[purposes.news]\ngranted_by = ["news_on"]\nwithdrawn_by = ["news_off"]\nmissing = "yes"\n'
    text += "[publish]\npurposes = []\n"
    purposes = load_text(tmp_path, SMALLEST + text).purposes
    assert purposes == {"news": PurposeSettings(granted_by=["news_on"], withdrawn_by=["news_off"], missing="yes")}


@pytest.mark.parametrize("name", ["recency_days", "device", "plan", "churned", "segments", "holdout", "user_id"])
def test_a_label_is_not_named_like_another_column(tmp_path: Path, name: str) -> None:
    users = '[users]\nfiles = "users.csv"\nuser_id = "id"\nattributes = ["Plan"]\n'
    said = f"labels.{name}: is the name of a feature, an attribute or a column; choose another"

    assert mistake(tmp_path, f'{SMALLEST}{users}[labels.{name}]\nkind = "churn"\n') == said


# --- what is wrong with a value ---


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            '"shop"',
            '"My Shop"',
            "name: 'My Shop' is wrong: write small letters, digits, - and _, a letter or digit first, such as my-shop",
        ),
        ('"shop"', "7", "name: 7 is wrong: it must be a text, in quotes"),
        ('"events.csv"', "7", "events.files: 7 is wrong: it must be a text, in quotes"),
        ('"user"', "7", "events.columns.user_id: 7 is wrong: it must be a text, in quotes"),
        ('"user"', '["a", "b"]', "events.columns.user_id: ['a', 'b'] is wrong: it must be a text, in quotes"),
        ('"user"', "{}", "events.columns.user_id: give one of column, sql and value"),
        ('"user"', '{ sql = "a", value = "b" }', "events.columns.user_id: give one of column, sql and value"),
    ],
)
def test_a_wrong_value_is_told_with_what_would_be_right(tmp_path: Path, right: str, wrong: str, said: str) -> None:
    assert mistake(tmp_path, SMALLEST.replace(right, wrong)) == said


NOT_EMPTY = "it must not be empty"


@pytest.mark.parametrize(
    ("section", "key", "value", "why"),
    [
        ("sessions", "gap_minutes", "0", "it must be more than 0"),
        ("sessions", "gap_minutes", "1441", "it must be at most 1,440"),
        ("sessions", "gap_minutes", "nan", "it must be a finite number"),
        ("features", "windows_days", "[]", NOT_EMPTY),
        ("labels", "delay_days", "-1", "it must be at least 0"),
        ("labels.churn", "horizon_days", "0", "it must be at least 0.01"),
        ("labels.churn", "eligible_days", "-7", "it must be more than 0"),
        ("labels.conversion", "events", "[]", NOT_EMPTY),
        ("training", "snapshots", "0", "it must be at least 1"),
        ("training", "seed", "'x'", "write a number, without quotes"),
        ("segments", "k_min", "1", "it must be at least 2"),
        ("segments", "dwell_margin", "1", "it must be less than 1"),
        ("segments", "k_max", "51", "it must be at most 50"),
        ("publish", "holdout_share", "1", "it must be less than 1"),
        ("publish", "holdout_share", "-0.1", "it must be at least 0"),
        ("publish.brake", "users_loss_max", "20", "it must be at most 1"),
        ("events.names", "view", "1", "it must be a text, in quotes"),
        ("events.columns", "event_id", "[1]", "it must be a text, in quotes"),
    ],
)
def test_a_wrong_value_of_a_section_is_told_with_what_would_be_right(
    tmp_path: Path, section: str, key: str, value: str, why: str
) -> None:
    header = "" if section == "events.columns" else f"[{section}]\n"
    assert mistake(tmp_path, f"{SMALLEST}{header}{key} = {value}\n") == f"{section}.{key}: {value} is wrong: {why}"


def test_of_a_list_the_wrong_item_is_told(tmp_path: Path) -> None:
    said = mistake(tmp_path, SMALLEST + "[features]\nwindows_days = [7, 0]\n")
    assert said == "features.windows_days: 0 is wrong: it must be more than 0"


def test_bounds_in_the_wrong_order_are_told(tmp_path: Path) -> None:
    said = mistake(tmp_path, SMALLEST + "[segments]\nk_min = 9\n")
    assert said == "segments: k_max (8) must be at least k_min (9)"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", "xls", "events.format: 'xls' is wrong: it must be 'csv', 'jsonl' or 'parquet'"),
        ("time_unit", "min", "events.time_unit: 'min' is wrong: it must be 'iso', 's', 'ms', 'us', 'ns' or 'day'"),
    ],
)
def test_one_of_a_few_values_is_told_with_all_of_them(tmp_path: Path, key: str, value: str, said: str) -> None:
    assert mistake(tmp_path, SMALLEST.replace("[events]", f'[events]\n{key} = "{value}"')) == said


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "CEST", "+02:00", "", "../../etc/passwd", "America"])
def test_what_is_no_time_zone_is_told_with_some_that_are(tmp_path: Path, zone: str) -> None:
    why = f"{zone!r} is not a time zone: write one such as 'UTC' or 'Europe/London'"
    assert mistake(tmp_path, f'time_zone = "{zone}"\n{SMALLEST}') == f"time_zone: {why}"
    of_events = SMALLEST.replace("[events]", f'[events]\ntime_zone = "{zone}"')
    assert mistake(tmp_path, of_events) == f"events.time_zone: {why}"


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ("[]", "users: says nothing of users; give attributes, email or phone, or remove [users]"),
        ('["plan", "device"]', "users.attributes: 'device' is the name of a feature; rename the column"),
        ('["recency_days"]', "users.attributes: 'recency_days' is the name of a feature; rename the column"),
        ('["session_count_28d"]', "users.attributes: 'session_count_28d' is the name of a feature; rename the column"),
        ('["user_id"]', "users.attributes: 'user_id' is the name of a feature; rename the column"),
        ('["plan", "plan"]', "users.attributes: 'plan' is there twice"),
        ('["plan", "Plan"]', "users.attributes: 'Plan' is there twice"),
        (
            '["Habitus.email"]',
            "users.attributes: names with 'habitus.' are reserved; rename the column 'Habitus.email'",
        ),
    ],
)
def test_attributes_are_some_each_once_and_no_features(tmp_path: Path, attributes: str, said: str) -> None:
    users = f'[users]\nfiles = "users.csv"\nuser_id = "id"\nattributes = {attributes}\n'
    assert mistake(tmp_path, SMALLEST + users) == said


def test_a_window_that_is_not_counted_is_free_as_a_name(tmp_path: Path) -> None:
    users = '[users]\nfiles = "users.csv"\nuser_id = "id"\nattributes = ["session_count_28d"]\n'
    assert load_text(tmp_path, SMALLEST + users + "[features]\nwindows_days = [7]\n").attributes


def test_files_and_ids_are_not_of_nothing(tmp_path: Path) -> None:
    assert mistake(tmp_path, SMALLEST.replace('"events.csv"', "[]")).startswith("events.files: [] is wrong: ")
    assert mistake(tmp_path, SMALLEST + "event_id = []\n").startswith("events.columns.event_id: [] is wrong: ")


def test_every_key_of_the_smallest_configuration_is_needed(tmp_path: Path) -> None:
    for key in tomllib.loads(SMALLEST)["events"]["columns"]:
        lines = [line for line in SMALLEST.splitlines() if not line.startswith(key)]
        assert mistake(tmp_path, "\n".join(lines)) == f"events.columns.{key}: is missing"


# --- instants ---


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2024-06-30", datetime(2024, 6, 30, 4, tzinfo=UTC)),
        ("2024-01-30", datetime(2024, 1, 30, 5, tzinfo=UTC)),
        ("2024-06-30T05:00", datetime(2024, 6, 30, 9, tzinfo=UTC)),
        ("2024-06-30 05:00:30", datetime(2024, 6, 30, 9, 0, 30, tzinfo=UTC)),
        ("2024-06-30T05:00+02:00", datetime(2024, 6, 30, 3, tzinfo=UTC)),
        ("2024-06-30T05:00Z", datetime(2024, 6, 30, 5, tzinfo=UTC)),
    ],
)
def test_an_instant_is_local_unless_it_has_an_offset(text: str, instant: datetime) -> None:
    assert parse_as_of(text, "America/New_York") == instant


@pytest.mark.parametrize("text", ["", "yesterday", "30.06.2024", "2024-06-31", "1719741600"])
def test_what_is_no_instant_is_told_with_some_that_are(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_as_of(text, "UTC")
    right = "2024-06-30, 2024-06-30T05:00 or 2024-06-30T05:00+02:00"
    assert str(caught.value) == f"as_of {text!r} is no instant: write {right}"


# --- destinations ---

WEBHOOK = """
[destinations.crm]
kind = "webhook"
url = "https://crm.example/habitus"
secret = { env = "CRM_SECRET" }
"""


def test_the_folder_of_published_versions_is_a_destination(tmp_path: Path) -> None:
    destinations = load_text(tmp_path, SMALLEST).all_destinations
    assert list(destinations) == ["published"]
    assert (destinations["published"].kind, destinations["published"].purposes) == ("files", None)


def test_each_section_is_a_destination_of_its_kind(tmp_path: Path) -> None:
    crm = load_text(tmp_path, SMALLEST + WEBHOOK).all_destinations["crm"]
    assert crm.kind == "webhook"


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        (WEBHOOK.replace('"webhook"', '"webhok"'), "destinations.crm.kind: 'webhok' is none (did you mean webhook?)"),
        (WEBHOOK.replace('kind = "webhook"\n', ""), "destinations.crm.kind: is missing; there are files, sql, webhook"),
        (WEBHOOK.replace("url =", "ulr ="), "destinations.crm.ulr: no such key; did you mean url?"),
        (WEBHOOK.replace("env =", "enviro ="), "destinations.crm.secret.enviro: no such key; did you mean env?"),
        (WEBHOOK.replace('{ env = "CRM_SECRET" }', '"hunter2"'), "destinations.crm.secret"),
        (WEBHOOK.replace('{ env = "CRM_SECRET" }', "{}"), 'give { env = "VARIABLE" } or { block = "prefect-block" }'),
        (WEBHOOK + "holdout_share = 1.5\n", "destinations.crm.holdout_share"),
        (WEBHOOK + 'purposes = ["ads"]\n', "destinations.crm.purposes: there is no [purposes.ads]; there are none"),
        (WEBHOOK.replace("destinations.crm", "destinations.published"), "published is the folder of [publish]"),
        (WEBHOOK.replace("destinations.crm", "destinations.CRM"), "'CRM' is no name of one"),
        (
            WEBHOOK + 'segments = ["at_rsk"]\n',
            "destinations.crm.segments: there is no segment 'at_rsk'; did you mean at_risk?",
        ),
        (
            WEBHOOK + "holdout_share = { X1 = 0.1 }\n",
            "destinations.crm.holdout_share: there is no segment 'X1'; there are",
        ),
        (
            '[destinations.copy]\nkind = "files"\nfolder = "published/"\n',
            "destinations.copy.folder: 'published' is that of published; name another",
        ),
        ("[destinations]\ncrm = 1\n", "destinations.crm: 1 is in no destination's section"),
        (
            '[purposes.ads]\ngranted_by = ["on"]\n[publish]\npurposes = []\n' + WEBHOOK,
            "destinations.crm.purposes: is missing; list those of ads that its users have to agree to",
        ),
        ('[purposes.ads]\ngranted_by = ["on"]\n', "publish.purposes: is missing"),
    ],
)
def test_a_mistake_in_a_destination_is_one_line_that_says_what_would_be_right(
    tmp_path: Path, section: str, complaint: str
) -> None:
    said = mistake(tmp_path, SMALLEST + section)
    assert complaint in said
    assert "hunter2" not in said


@pytest.mark.parametrize("name", ["self", "place", "previous_segment_id", "plan_then", "User_ID_right"])
def test_a_name_that_tables_have_for_a_while_is_none_of_an_attribute(tmp_path: Path, name: str) -> None:
    users = f'[users]\nfiles = "users.csv"\nuser_id = "id"\nattributes = ["{name}"]\n'

    assert mistake(tmp_path, SMALLEST + users) == (
        f"users.attributes: Habitus has columns called {name!r} itself; rename the column"
    )
