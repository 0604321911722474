"""RabbitMQ, behind the few calls that a scenario needs apart from AMQP."""

import time

from tests.contract.environment import VERSIONS
from tests.rabbit import PrivateRabbit


def closest(version: tuple[int, ...]) -> str:
    """The one of `VERSIONS` that a release behaves as: the last one that is not newer."""
    older = [each for each in VERSIONS if tuple(map(int, each.split("."))) <= version]
    return older[-1]


class Rabbit:
    """A node of RabbitMQ that runs already."""

    def __init__(self, node: PrivateRabbit) -> None:
        self.port = node.port
        self.behaves_as = closest(node.version)
        self._node = node

    def add_vhost(self, name: str, *, default_queue_type: str | None = None) -> None:
        """Create a virtual host, with a type for queues that are declared without one."""
        if default_queue_type is not None:
            metadata = f'#{{default_queue_type => <<"{default_queue_type}">>}}'
            self._node.eval(f'ok = rabbit_vhost:add(<<"{name}">>, {metadata}, <<"tests">>)')
        self._node.add_vhost(name)  # An existing one is not changed.

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host when the node has registered its connections.

        The node registers connections in a separate process, and closes only registered ones.
        """
        noted = f'length(rabbit_connection_tracking:list(<<"{name}">>))'
        deadline = time.monotonic() + 10.0
        while int(self._node.eval(noted)) < self._node.connections(name):
            assert time.monotonic() < deadline, "the node does not note its connections"
            time.sleep(0.005)
        self._node.delete_vhost(name)

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm, and return when all connections are notified."""
        self._node.memory_alarm(on)
        self._node.eval("rabbit_alarm:get_alarms()")
