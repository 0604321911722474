"""RabbitMQ, behind the few calls that a scenario needs apart from AMQP."""

import time

from tests.rabbit import PrivateRabbit


class Rabbit:
    """A node of RabbitMQ that runs already."""

    def __init__(self, node: PrivateRabbit) -> None:
        self.port = node.port
        self.add_vhost = node.add_vhost
        self._node = node

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host, as soon as the node has noted who is connected to it.

        It does so in a process of its own, and closes only those connections that are noted.
        """
        noted = f'length(rabbit_connection_tracking:list(<<"{name}">>))'
        deadline = time.monotonic() + 10.0
        while int(self._node.eval(noted)) < self._node.connections(name):
            assert time.monotonic() < deadline, "the node does not note its connections"
            time.sleep(0.005)
        self._node.delete_vhost(name)

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm, and return when all connections were told."""
        self._node.memory_alarm(on)
        self._node.eval("rabbit_alarm:get_alarms()")
