"""The guarantees of every store, tested on a directory and on a real Redis."""

import subprocess
import sys
import threading

import pytest

from extproc.server.learned.store import DirectoryStore, StoreError, UnreadableDocument


def read(store):
    found = []
    assert store.update(lambda stored: found.append(stored)) is None
    return found[-1]


@pytest.fixture(params=["directory", "redis"])
def make_store(request, tmp_path):
    """Return a function that creates stores for the same document, as processes do."""
    if request.param == "directory":
        return lambda name="document", earlier=(): DirectoryStore(
            tmp_path / "state", name, earlier
        )
    server = request.getfixturevalue("redis_server")
    from extproc.server.learned.redis_store import RedisStore

    return lambda name="document", earlier=(): RedisStore(server.url, name, earlier)


def test_what_was_written_is_read_by_another(make_store):
    assert read(make_store()) is None
    make_store().update(lambda stored: b"content")
    assert read(make_store()) == b"content"


def test_no_update_is_lost_when_many_write_at_once(make_store):
    writers, times = 4, 12

    def write():
        store = make_store()
        for _ in range(times):
            while True:
                try:
                    store.update(lambda stored: b"%d" % (int(stored or 0) + 1))
                except StoreError:  # overtaken: nothing was written
                    continue
                break

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(make_store()) == b"%d" % (writers * times)


def test_a_document_of_an_earlier_version_is_left_and_reported_once(make_store):
    make_store("document.v1").update(lambda stored: b"old")
    store = make_store("document.v2", ["document.v1"])
    aside = store.update(lambda stored: b"new" if stored is None else None)
    assert aside.place.endswith("document.v1")
    assert "earlier version" in aside.reason
    assert store.update(lambda stored: None) is None
    assert read(make_store("document.v2")) == b"new"
    assert read(make_store("document.v1")) == b"old"


def refuse(kind):
    def change(stored):
        if stored is not None:
            raise UnreadableDocument(kind, "a reason")
        return b"new"

    return change


def test_an_unreadable_document_is_set_aside_and_replaced(make_store, tmp_path):
    store = make_store()
    store.update(lambda stored: b"bad")
    aside = store.update(refuse("corrupt"))
    assert aside.place.endswith("document.corrupt")
    assert aside.reason == "a reason"
    assert read(store) == b"new"


def test_set_aside_documents_do_not_pile_up(make_store, tmp_path):
    store = make_store()
    for _ in range(3):
        store.update(lambda stored: b"bad")
        store.update(refuse("corrupt"))
    if isinstance(store, DirectoryStore):
        names = sorted(path.name for path in (tmp_path / "state").iterdir())
        assert names == ["document", "document.corrupt", "document.lock"]


def test_a_redis_that_is_away_and_back(redis_server):
    from extproc.server.learned.redis_store import RedisStore

    store = RedisStore(redis_server.url, "document")
    store.update(lambda stored: b"content")
    redis_server.stop()
    with pytest.raises(StoreError):
        read(store)
    redis_server.start()
    store.update(lambda stored: b"again")
    assert read(store) == b"again"


def test_a_redis_error_does_not_show_the_password(redis_server):
    from extproc.server.learned.redis_store import RedisStore

    store = RedisStore(f"unix://user:hunter2@{redis_server.socket}", "document")
    with pytest.raises(StoreError) as raised:
        read(store)
    assert "hunter2" not in str(raised.value)


def test_a_path_that_is_no_directory_is_unavailable(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StoreError, match="state"):
        read(DirectoryStore(tmp_path / "state", "document"))


def test_a_writer_that_dies_half_way_leaves_the_old_document(tmp_path):
    store = DirectoryStore(tmp_path, "document")
    store.update(lambda stored: b"old")

    script = (
        "import os, pathlib, sys\n"
        "from extproc.server.learned.store import DirectoryStore\n"
        "store = DirectoryStore(pathlib.Path(sys.argv[1]), 'document')\n"
        "store.update(lambda stored: os._exit(7))\n"
    )
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert child.returncode == 7
    assert read(store) == b"old"
    store.update(lambda stored: b"new")  # the process's end released its lock
    assert read(store) == b"new"


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path):
    store = DirectoryStore(tmp_path, "document")
    (tmp_path / "document").mkdir()  # no file can replace a directory
    with pytest.raises(StoreError):
        store.update(lambda stored: b"content")
    assert not list(tmp_path.glob("*.tmp"))
