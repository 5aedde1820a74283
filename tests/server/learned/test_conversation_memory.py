"""The shared memory in which workers remember conversations."""

from pathlib import Path

import pytest

from extproc.routing.conversation import Conversations, memory_bytes
from extproc.server.learned.conversation_memory import ConversationMemory


def test_workers_of_one_directory_share_it(tmp_path: Path) -> None:
    one, two = (ConversationMemory(tmp_path).open(100) for _ in range(2))
    Conversations(100, one).remember(7, 5)
    assert one.tobytes() == two.tobytes() != bytes(memory_bytes(100))
    assert ConversationMemory().open(100).tobytes() == bytes(memory_bytes(100))


def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    ConversationMemory(tmp_path).open(100)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == memory_bytes(100)


def test_a_file_begun_by_a_worker_that_died_is_made_whole(tmp_path: Path) -> None:
    (tmp_path / f"conversations.{memory_bytes(100)}").write_bytes(b"\1" * 16)
    words = ConversationMemory(tmp_path).open(100)
    assert words.tobytes() == b"\1" * 16 + bytes(memory_bytes(100) - 16)


def test_without_the_file_each_remembers_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = ConversationMemory(tmp_path / "gone")
    Conversations(100, memory.open(100)).remember(7, 5)
    assert memory.open(100).tobytes() != bytes(memory_bytes(100))
    assert [record.message for record in caplog.records] == ["conversations_not_shared"]
