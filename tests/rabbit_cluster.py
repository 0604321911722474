"""A private cluster of RabbitMQ nodes for tests, and faults of clusters.

    with RabbitCluster() as cluster:
        cluster.kill(cluster.leader("orders", vhost))
        ...
        cluster.heal()

The nodes are numbered from 0. They find each other by one epmd of their own, and end with the
process that started them, as a single node does (tests/rabbit.py). All methods block; in a
coroutine, call `start`, `restart`, `heal` and `close` through `asyncio.to_thread`.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from secrets import token_hex
from types import TracebackType
from typing import Self

from tests.ports import free_port
from tests.rabbit import Membership, PrivateRabbit, RabbitFailed, start_epmd
from tests.rabbit_versions import installation

_START = 240.0
# A minority stops serving, as RabbitMQ advises: with Mnesia (before 4.0) two halves that both go
# on do not become one cluster again by themselves.
_CONF = """
cluster_formation.peer_discovery_backend = classic_config
cluster_partition_handling = pause_minority
"""


class RabbitCluster:
    """Nodes on loopback that form one cluster; use it with `with`.

    Args:
        size: Number of nodes.
        conf: More lines for each `rabbitmq.conf`.
        plugins: Plugins to enable on each node.
        version: Such as "4.3"; None for the version that this run of the tests is for.

    Attributes:
        nodes: The nodes, running or not.
    """

    def __init__(
        self,
        size: int = 3,
        conf: str = "",
        plugins: Sequence[str] = (),
        version: str | None = None,
    ) -> None:
        token = token_hex(4)
        names = [f"{'abcdefgh'[number]}{token}@localhost" for number in range(size)]
        peers = "".join(
            f"cluster_formation.classic_config.nodes.{number} = {name}\n"
            for number, name in enumerate(names, 1)
        )
        self.nodes: list[PrivateRabbit] = []
        self._names = names
        self._conf = f"{_CONF}{peers}{conf}"
        self._plugins = plugins
        self._version = version
        self._epmd: subprocess.Popen[bytes] | None = None
        self._cut_off: set[int] = set()
        self._thawed: set[int] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RabbitCluster({self.nodes})"

    # Life

    def start(self) -> float:
        """Start all nodes at the same time; return the seconds until they were one cluster.

        Raises:
            RabbitFailed: They did not become one; nothing of them is left.
        """
        began = time.monotonic()
        try:
            self._start_all()
            self._wait(self._complete, began + _START, "one cluster")
        except BaseException:
            self.close()
            raise
        return time.monotonic() - began

    def close(self) -> None:
        """Kill all nodes and remove their directories. May be called twice."""
        for node in self.nodes:
            node.kill()
        for node in self.nodes:
            node.close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def heal(self) -> None:
        """Undo every fault, and wait until all nodes serve and see each other.

        With Mnesia (before 4.0) a node that was frozen for too long stays apart from the others
        until it is restarted.
        """
        for node in self.nodes:
            if node.running and not node.serving:
                self.resume(self.nodes.index(node))
        for number in sorted(self._cut_off):
            self.reconnect(number)
        for number in sorted(self._thawed):
            if self._partitioned(number):
                self.nodes[number].stop()
        self._thawed.clear()
        stopped = [node for node in self.nodes if not node.running]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.start(_START), stopped))
        self._wait(self._complete, time.monotonic() + _START, "one cluster again")

    @property
    def version(self) -> tuple[int, ...]:
        """Version of RabbitMQ."""
        return installation(self._version).version

    @property
    def live(self) -> list[int]:
        """The nodes whose process runs and is not frozen."""
        return [number for number, node in enumerate(self.nodes) if node.serving]

    def add_vhost(self, name: str) -> None:
        """Create a virtual host that `guest` may use, and wait until it is up on every node."""
        self.nodes[0].add_vhost(name)
        alive = f"rabbit_vhost_sup_sup:is_vhost_alive({_binary(name)})"

        def up() -> bool:
            return all(node.eval(alive) == "true" for node in self.nodes)

        self._wait(up, time.monotonic() + 30.0, f"virtual host {name!r} on every node")

    # Faults

    def kill(self, number: int) -> None:
        """Send SIGKILL to a node."""
        self.nodes[number].kill()

    def pause(self, number: int) -> None:
        """Freeze a node (SIGSTOP): connections stay open and nothing answers."""
        self.nodes[number].pause()

    def resume(self, number: int) -> None:
        """Resume a frozen node."""
        self.nodes[number].resume()
        self._thawed.add(number)

    def start_node(self, number: int) -> float:
        """Start a node that was stopped or killed, and wait until it serves with the others."""
        seconds = self.nodes[number].start(_START)
        self._wait(self._complete, time.monotonic() + _START, "the node is back")
        return seconds

    def restart(self, number: int) -> float:
        """Stop a node cleanly and start it again; return the seconds that the start took."""
        self.nodes[number].stop()
        return self.start_node(number)

    def cut_off(self, number: int) -> None:
        """Cut a node off from the other nodes; clients still reach it."""
        others = self._others(number)
        # A wrong cookie keeps both sides from connecting again.
        self.nodes[number].eval(
            f"[begin erlang:set_cookie(Node, wrong), erlang:disconnect_node(Node) end"
            f" || Node <- {others}]"
        )
        self._cut_off.add(number)

    def reconnect(self, number: int) -> None:
        """Undo `cut_off`."""
        self.nodes[number].eval(
            "[begin erlang:set_cookie(Node, erlang:get_cookie()),"
            " net_kernel:connect_node(Node) end"
            f" || Node <- {self._others(number)}]"
        )
        self._cut_off.discard(number)

    # Look

    def leader(self, queue: str, vhost: str) -> int:
        """Return the node with the leader of a quorum queue, or the home of a classic queue."""
        text = self.any_node().eval(
            f"{{ok, Queue}} = rabbit_amqqueue:lookup({_resource(queue, vhost)}),"
            " case amqqueue:get_pid(Queue) of"
            " Pid when is_pid(Pid) -> atom_to_binary(node(Pid));"
            " Id -> {ok, _, {_, Node}} = ra:members(Id), atom_to_binary(Node) end"
        )
        return self._names.index(text)

    def members(self, queue: str, vhost: str) -> list[int]:
        """Return the nodes with a member of a quorum queue."""
        text = self.any_node().eval(
            f"{{ok, Queue}} = rabbit_amqqueue:lookup({_resource(queue, vhost)}),"
            " {ok, Members, _} = ra:members(amqqueue:get_pid(Queue)),"
            ' iolist_to_binary(lists:join(" ", [atom_to_binary(Node) || {_, Node} <- Members]))'
        )
        return sorted(map(self._names.index, text.split()))

    def move_leader(self, queue: str, vhost: str, number: int) -> None:
        """Make the member on a node the leader of a quorum queue."""

        def moved() -> bool:
            if self.leader(queue, vhost) == number:
                return True
            self.any_node().eval(
                f"{{ok, Queue}} = rabbit_amqqueue:lookup({_resource(queue, vhost)}),"
                " {Name, _} = amqqueue:get_pid(Queue),"
                " {ok, _, Leader} = ra:members({Name, node()}),"
                f" ra:transfer_leadership(Leader, {{Name, '{self._names[number]}'}})"
            )
            return False

        self._wait(moved, time.monotonic() + 30.0, f"leader of {queue!r} on node {number}")

    def nodes_of(self, connection_name: str, vhost: str) -> list[int]:
        """Return the live nodes to which clients of that name are connected."""
        return [number for number in self.live if self._has(number, connection_name, vhost)]

    def _has(self, number: int, connection_name: str, vhost: str) -> bool:
        found = self.nodes[number].eval(
            "pg_local:sync(), lists:any(fun(Pid) ->"
            " case catch rabbit_networking:connection_info(Pid, [vhost, client_properties]) of"
            f" [{{vhost, {_binary(vhost)}}}, {{client_properties, Table}}] ->"
            f" lists:member({{{_binary('connection_name')}, longstr,"
            f" {_binary(connection_name)}}}, Table);"
            " _ -> false end end, rabbit_networking:local_connections())"
        )
        return found == "true"

    # Within

    def _start_all(self) -> None:
        port = free_port()
        self._epmd = start_epmd(
            {"PATH": installation(self._version).path, "ERL_EPMD_PORT": str(port)}
        )
        membership = Membership(token_hex(10).upper(), port, self._epmd.pid)
        self.nodes = [
            PrivateRabbit(
                self._conf, self._version, self._plugins, name=name, membership=membership
            )
            for name in self._names
        ]
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda node: node.start(_START), self.nodes))

    def _complete(self) -> bool:
        """Return whether every node serves and sees all others."""
        return all(
            node.eval(
                f"[] =:= [Node || Node <- {self._others(number)}, not rabbit:is_running(Node)]"
            )
            == "true"
            and node.eval("rabbit:is_running()") == "true"
            and self._clustered(node)
            for number, node in enumerate(self.nodes)
        )

    def _partitioned(self, number: int) -> bool:
        """Return whether a node that runs has found itself parted from the others by Mnesia."""
        if self.version >= (4,) or not self.nodes[number].running:
            return False
        # It finds out a moment after it was resumed.
        with suppress(RabbitFailed):
            self._wait(self._complete, time.monotonic() + 10.0, "one cluster again")
        return self.nodes[number].eval("rabbit_node_monitor:partitions()") != "[]"

    def _clustered(self, node: PrivateRabbit) -> bool:
        members = node.eval(
            "length(case erlang:function_exported(rabbit_nodes, list_members, 0) of"
            " true -> rabbit_nodes:list_members(); false -> rabbit_nodes:all() end)"
        )
        return int(members) == len(self.nodes)

    def _others(self, number: int) -> str:
        """Return an Erlang list of the other nodes."""
        names = [f"'{name}'" for each, name in enumerate(self._names) if each != number]
        return f"[{', '.join(names)}]"

    def any_node(self) -> PrivateRabbit:
        """Return a node that can answer for the whole cluster."""
        for number in self.live:
            if number not in self._cut_off:
                return self.nodes[number]
        raise RabbitFailed(f"no node of {self!r} is live")

    def _wait(self, condition: Callable[[], bool], deadline: float, what: str) -> None:
        last: Exception | None = None
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except (OSError, RabbitFailed) as error:  # a node on its way up, or an election
                last = error
            time.sleep(0.1)
        raise RabbitFailed(f"not in time: {what}; {last}; {self!r}")


def _resource(queue: str, vhost: str) -> str:
    return f"rabbit_misc:r({_binary(vhost)}, queue, {_binary(queue)})"


def _binary(text: str) -> str:
    """Return an Erlang binary, safe for any text."""
    return f"<<{','.join(map(str, text.encode()))}>>"
