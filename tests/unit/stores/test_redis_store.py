"""What is Redis' own about the store: its address, its durability, its absence."""

from __future__ import annotations

import binascii
import sys
from pathlib import Path

import msgspec
import pytest
import redis

from app.errors import MachineError
from app.events import Event
from app.stores.open import open_store
from app.stores.redis_store import LAYOUT, LOG, SEEN, RedisStore
from tests.redis_server import redis_server


def test_an_address_where_nobody_answers_is_shown_without_the_password() -> None:
    with pytest.raises(MachineError) as error:
        open_store("redis://name:secret@127.0.0.1:1/0")
    assert "127.0.0.1:1/0" in str(error.value)
    assert "secret" not in str(error.value)


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(MachineError, match="redis://HOST"):
        open_store("redis://127.0.0.1:port/0")


def test_without_the_client_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "app.stores.redis_store", raising=False)
    with pytest.raises(MachineError, match=r"rayrec\[redis\]"):
        open_store("redis://127.0.0.1/0")


def test_says_so_where_an_acknowledged_event_could_be_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis_server(tmp_path) as url:
        RedisStore(url).close()
        assert "lose" not in capsys.readouterr().err
        redis.Redis.from_url(url).config_set("appendfsync", "everysec")
        RedisStore(url).close()
        assert "appendfsync always" in capsys.readouterr().err


def test_the_log_holds_every_event_in_order_after_a_restart(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:  # ended by kill -9
        store = RedisStore(url)
        store.append([Event("u", f"i{n}", "view", float(n), 2.0) for n in range(50)])
        store.close()
    with redis_server(tmp_path) as url:
        entries = redis.Redis.from_url(url, decode_responses=True).xrange(LOG)
        logged = [msgspec.json.decode(fields["event"]) for _, fields in entries]
        assert [entry[:3] for entry in logged] == [[f"i{n}", "view", 2.0] for n in range(50)]
        assert [event.item for event in RedisStore(url).recent("u", 2)] == ["i48", "i49"]


def test_a_redis_that_is_full_refuses_and_loses_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        store, client = RedisStore(url), redis.Redis.from_url(url)
        store.append([Event("u", "kept", timestamp=1)])
        client.config_set("maxmemory", 1)
        with pytest.raises(MachineError, match="maxmemory"):
            store.append([Event("u", "refused", timestamp=2)])
        assert [event.item for event in store.recent("u", 5)] == ["kept"]


def slot(key: str) -> int:
    """Of a key in a cluster, by its specification: CRC16 of the text in the first braces, modulo 16384."""
    start = key.find("{")
    end = key.find("}", start + 1)
    tagged = key[start + 1 : end] if start >= 0 and end > start + 1 else key
    return binascii.crc_hqx(tagged.encode(), 0) % 16384


def test_slots_are_computed_as_the_specification_says() -> None:
    assert slot("123456789") == 0x31C3  # its own example of CRC16
    assert slot("{user1000}.following") == slot("{user1000}.followers")
    assert slot("foo{}{bar}") != slot("bar") and slot("foo{{bar}}zap") == slot("{bar")


def test_all_keys_of_a_call_and_of_its_script_share_a_slot(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        client = redis.Redis.from_url(url, decode_responses=True)
        with client.monitor() as monitor:
            store = RedisStore(url)
            mark, _ = store.changes(None)
            store.append([Event("u", "a", timestamp=1), Event("{v}", "b"), Event("w}", "c")])
            store.put_item("{i}", b"{}")
            store.recent("{v}", 5)
            list(store.seen("{v}"))
            store.changes(mark)
            store.items(None)
            list(store.remove_before(5_000_000))
            store.claim_removal(1.0)
            store.close()
            client.echo("the end")
            scripts = calls = 0
            while not (command := monitor.next_command()["command"]).startswith("ECHO"):
                words = command.split()
                if words[0].upper() in ("CLIENT", "HELLO", "INFO", "CONFIG", "MONITOR", "SCRIPT", "SELECT"):
                    continue  # without keys
                slots = {slot(key) for key in client.command_getkeys(*words)}
                assert slots == {slot("{rayrec}")}, command
                scripts += words[0].upper() == "EVALSHA"
                calls += 1
        assert scripts >= 2 and calls > 15  # those inside the scripts among them
        client.close()


def test_a_log_of_before_there_were_versions_gets_the_seen_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.stores.redis_store.PORTION", 7)
    with redis_server(tmp_path) as url:
        store, client = RedisStore(url), redis.Redis.from_url(url)
        store.append([Event("u", f"i{n}", timestamp=n) for n in range(50)])
        client.delete(LAYOUT, SEEN + "u")  # as it was
        store.close()
        store = RedisStore(url)
        assert list(store.seen("u")) == [[f"i{n}" for n in reversed(range(50))]]
        assert client.get(LAYOUT) == b"1"
        store.close()
