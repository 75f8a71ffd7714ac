from pathlib import Path

from messages import read_messages


def test_every_message_of_the_table_is_made_by_a_test() -> None:
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [case for case in read_messages() if case not in tests] == []
