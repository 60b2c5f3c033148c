import tracemalloc

from sessionproxy.core.memory import MAX_REMEMBERED, MAX_SUBSCRIPTIONS, Memory
from sessionproxy.wire import Remembers
from sessionproxy.wire.params import MANY


def test_subscriptions_that_are_remembered_are_bounded_and_the_oldest_go_first() -> None:
    """DESIGN 5.3: bounded in memory."""
    memory = Memory()
    for number in range(MAX_SUBSCRIPTIONS + 2):
        memory.note(Remembers.SUBSCRIBE, b'{"uri":"a://%d"}' % number)
    assert len(memory.subscriptions) == MAX_SUBSCRIPTIONS
    assert b'"a://1"' not in memory.subscriptions
    assert b'"a://2"' in memory.subscriptions


def test_what_a_client_adds_to_its_subscriptions_does_not_fill_the_memory() -> None:
    """DESIGN 7: at most 4 KiB each. What is kept is what is counted."""
    memory = Memory()
    padding = b"x" * 100_000
    for number in range(10):
        memory.note(
            Remembers.SUBSCRIBE,
            b'{"uri":"a://%d","_meta":{"progressToken":1,"x":"%b"}}' % (number, padding),
        )
    memory.note(Remembers.LOG_LEVEL, b'{"level":"debug","_meta":{"x":"%b"}}' % padding)
    kept = [bytes(params) for params in memory.subscriptions.values()]
    assert kept[0] == b'{"uri":"a://0"}'
    assert memory.log_level == b'{"level":"debug"}'
    assert sum(map(len, kept)) + len(memory.log_level) <= memory.size <= 4096


def test_subscriptions_to_long_names_do_not_fill_the_memory() -> None:
    """DESIGN 5.3: bounded in bytes, not only in number."""
    memory = Memory()
    for number in range(100):
        memory.note(Remembers.SUBSCRIBE, b'{"uri":"a://%d/%b"}' % (number, b"x" * 100_000))
    assert memory.size <= 1024 * 1024


def test_only_the_last_log_level_is_kept_and_a_subscription_until_it_is_taken_back() -> None:
    """DESIGN 7: log level and subscriptions are replayed on waking."""
    memory = Memory()
    for level in (b"debug", b"error"):
        memory.note(Remembers.LOG_LEVEL, b'{"level":"%b"}' % level)
    for uri in (b"a://1", b"a://2"):
        memory.note(Remembers.SUBSCRIBE, b'{"uri":"%b","x":1}' % uri)
    memory.note(Remembers.UNSUBSCRIBE, b'{"uri":"a://1"}')
    memory.note(Remembers.UNSUBSCRIBE, b'{"uri":"a://3"}')
    assert memory.log_level == b'{"level":"error"}'
    assert list(memory.subscriptions.values()) == [b'{"uri":"a://2","x":1}']


def test_what_is_too_large_to_keep_drives_nothing_else_out() -> None:
    """DESIGN 7: the others are replayed on waking all the same."""
    memory = Memory()
    memory.note(Remembers.SUBSCRIBE, b'{"uri":"a://1"}')
    memory.note(Remembers.SUBSCRIBE, b'{"uri":"a://2","x":"%b"}' % (b"x" * MAX_REMEMBERED))
    assert list(memory.subscriptions) == [b'"a://1"']


def test_of_a_million_members_only_what_matters_is_looked_for() -> None:
    """FAULTS I8: taking them apart would hold up everybody; counted in what is allocated."""
    memory = Memory()
    many = b",".join(b'"k%07d":1' % number for number in range(4 * MANY))
    requests = [
        (Remembers.SUBSCRIBE, b'{"_meta":{%b},"uri":"a://1"}' % many),
        (Remembers.SUBSCRIBE, b'{"uri":"a://2",%b}' % many),
        (Remembers.UNSUBSCRIBE, b'{%b,"uri":"a://2"}' % many),
        (Remembers.LOG_LEVEL, b'{%b,"level":"error"}' % many),
    ]
    tracemalloc.start()
    try:
        for kind, params in requests:
            memory.note(kind, params)
        assert tracemalloc.get_traced_memory()[1] < len(many) // 10
    finally:
        tracemalloc.stop()
    assert memory.subscriptions == {b'"a://1"': b'{"uri":"a://1"}'}
    assert memory.log_level == b'{"level":"error"}'
