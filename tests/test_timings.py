from timings import slowest


def test_the_slowest_come_first_and_of_equal_ones_the_first_by_name() -> None:
    phases = [("b", "call", 1.0), ("c", "call", 2.0), ("a", "setup", 0.25), ("a", "call", 0.5), ("a", "teardown", 0.25)]

    [_, _, *rows] = slowest(phases, 50)
    assert [row.split() for row in rows] == [["2.00", "0.00", "c"], ["1.00", "0.50", "a"], ["1.00", "0.00", "b"]]


def test_no_more_are_shown_than_asked_and_the_head_says_what_they_are_of() -> None:
    head, _, *rows = slowest([(f"t{number}", "call", 1.0) for number in range(2_000)], 3)

    assert head == "The slowest 3 of 2,000 tests take 3.0 of 2000.0 s"
    assert len(rows) == 3


def test_without_tests_there_is_a_table_without_rows() -> None:
    assert slowest([], 50)[0] == "The slowest 0 of 0 tests take 0.0 of 0.0 s"
