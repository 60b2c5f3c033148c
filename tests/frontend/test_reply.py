"""Deciding what a POST is answered with."""

from sessionproxy.core.exchange import Exchange, Outbound, Outcome
from sessionproxy.frontend.reply import Reply
from sessionproxy.frontend.stream import Streams


async def test_what_comes_after_a_json_answer_makes_no_stream_of_it() -> None:
    """DESIGN 5.3: nobody would end such a stream; the keepalive timer may be the one that comes."""
    reply = Reply(Streams(), expose_stderr=False)
    exchange = Exchange("ping", None, client_id=b"1", sink=reply)
    exchange.settle(Outcome(result=b"{}"))
    assert reply.commit() is None
    reply.message(Outbound(b"{}"))
    assert reply.stream is None
    assert reply.body == b'{"jsonrpc":"2.0","id":1,"result":{}}'
