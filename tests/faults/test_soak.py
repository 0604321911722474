"""G2. Many messages, failures and reconnects, in a short form; `make soak` is the long one."""

from tests.rabbit import PrivateRabbit
from tests.soak import soaking


async def test_g2_nothing_is_lost_and_nothing_grows(rabbit: PrivateRabbit, vhost: str) -> None:
    """A hundred thousand messages, a thousand that fail, a hundred reconnects."""
    async with soaking(rabbit, vhost) as soak:
        rounds = [await soak.round(33_000, 340, 34) for _ in range(3)]

    assert [each.lost for each in rounds] == [set()] * 3
    assert rounds[-1].size.grown(rounds[0].size) == []
