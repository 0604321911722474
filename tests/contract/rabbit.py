"""RabbitMQ, behind the few calls that a scenario needs apart from AMQP."""

from tests.rabbit import PrivateRabbit


class Rabbit:
    """A node of RabbitMQ that runs already."""

    def __init__(self, node: PrivateRabbit) -> None:
        self.port = node.port
        self.add_vhost = node.add_vhost
        self.delete_vhost = node.delete_vhost
        self._node = node

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm, and return when all connections were told."""
        self._node.memory_alarm(on)
        self._node.eval("rabbit_alarm:get_alarms()")
