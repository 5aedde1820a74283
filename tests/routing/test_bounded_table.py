from extproc.routing.bounded_table import BoundedTable


def test_keys_beyond_the_limit_share_one_value() -> None:
    table = BoundedTable(list[str], limit=2)
    for key in ("a", "b", "c", "d"):
        table.touch(key).append(key)
    assert dict(table.items()) == {"a": ["a"], "b": ["b"]}
    assert table.get("c") == table.get("unheard of") == ["c", "d"]
    assert len(table) == 2


def test_looking_up_admits_nothing() -> None:
    table = BoundedTable(list[str], limit=2)
    assert table.get("a") is None
    assert len(table) == 0


def test_an_idle_key_makes_room_and_a_busy_one_does_not() -> None:
    table = BoundedTable(list[str], limit=2, idle_touches=10)
    table.touch("idle")
    for _ in range(10):
        table.touch("busy")
    assert table.touch("new") is not table.touch("other")
    assert table.get("idle") is table.touch("other")
    assert {key for key, _ in table.items()} == {"busy", "new"}


def test_values_include_the_shared_one() -> None:
    table = BoundedTable(list[str], limit=1)
    for key in ("a", "b"):
        table.touch(key).append(key)
    assert list(table.values()) == [["a"], ["b"]]
