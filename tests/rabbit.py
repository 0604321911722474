"""A private RabbitMQ node for tests, on free loopback ports, which leaves nothing behind.

    with PrivateRabbit() as rabbit:
        connection = await aio_pika.connect(rabbit.url())

It starts in about four seconds, as root or not, next to other nodes, and touches no service of the
system. All methods block: in a coroutine, call the slow ones (`start`, `stop`, `restart`, `ctl`) by
way of `asyncio.to_thread`. The others answer within milliseconds, because they do not use
`rabbitmqctl` but a socket on which the node evaluates Erlang (`rabbit_control.erl`).
"""

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.ports import free_port
from tests.rabbit_versions import Installation, NotInstalled, installation

_CONTROL = Path(__file__).with_name("rabbit_control.erl")
_PORT_CLASH = re.compile(r"eaddrinuse|in use", re.IGNORECASE)


def missing() -> str | None:
    """Return what has to be installed before a node can start; None if nothing."""
    try:
        installation()
    except NotInstalled as error:
        return str(error)
    return None


class RabbitFailed(Exception):
    """The node did not start, or a command failed."""


class _PortClash(RabbitFailed):
    """One of the node's ports is in use."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """The state of a queue.

    Attributes:
        ready: Messages waiting.
        unacked: Messages delivered and not yet settled.
        consumers: Consumers attached.
    """

    ready: int
    unacked: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Membership:
    """The shared settings of the nodes of one cluster.

    Attributes:
        cookie: The secret by which they know each other.
        epmd_port: Port of the epmd that all of them register with.
        epmd_pid: Its process, which the cluster ends.
    """

    cookie: str
    epmd_port: int
    epmd_pid: int


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """The state of a consumer.

    Attributes:
        queue: Name of the queue.
        tag: The consumer tag.
        prefetch: Its own prefetch count, 0 for none.
    """

    queue: str
    tag: str
    prefetch: int


class PrivateRabbit:
    """One RabbitMQ node with its own directory, ports, cookie and epmd.

    Nothing is started before `start`. Ports, users and durable data survive `stop`, `kill` and a
    later `start`; `close` ends everything and removes the directory. The node also ends by itself
    when the process that started it dies, however that happens.

    Args:
        conf: Lines for `rabbitmq.conf`.
        version: Such as "4.3"; None for the version that this run of the tests is for.
        plugins: Names of the plugins to enable.
        name: Node name; a random one by default.
        membership: Of a node of a cluster, which then shares epmd and cookie.

    Raises:
        NotInstalled: There is no such RabbitMQ.
    """

    def __init__(
        self,
        conf: str = "",
        version: str | None = None,
        plugins: Sequence[str] = (),
        *,
        name: str = "",
        membership: Membership | None = None,
    ) -> None:
        self.name = name or f"workerkit{token_hex(4)}@localhost"
        self.port = 0
        self._conf = conf
        self._plugins = plugins
        self._membership = membership
        self._installation = installation(version)
        self._root: Path | None = None
        self._env: dict[str, str] = {}
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._lease: socket.socket | None = None
        self._frozen = False

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
        return f"PrivateRabbit({self.name}, port {self.port}, pids {self.pids()})"

    @property
    def version(self) -> tuple[int, ...]:
        """The version of RabbitMQ, such as (4, 3, 6)."""
        return self._installation.version

    # Life

    def start(self, timeout: float = 60.0) -> float:
        """Start the node and wait until it accepts connections.

        Returns:
            The seconds it took.

        Raises:
            RabbitFailed: It did not; nothing of it is left, and its last lines of output are in
                the text.
        """
        if self._node is not None:
            raise RabbitFailed("this node is running already")
        began = time.monotonic()
        # Clients know the ports of a node that ran before: they cannot change.
        tries = 3 if self._root is None else 1
        for left in reversed(range(tries)):
            try:
                if self._root is None:
                    self._prepare()
                self._boot(began + timeout)
                return time.monotonic() - began
            except _PortClash:
                self.close()
                if not left:
                    raise
            except BaseException:
                self.close()
                raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Shut down cleanly, as SIGTERM does. Durable messages stay for the next `start`."""
        if self._node is not None and self._node.poll() is None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            try:
                self._node.wait(30.0)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        self._reap()

    def kill(self) -> None:
        """Send SIGKILL: clients are not notified, and what is not on disk is lost."""
        if self._node is not None and self._node.poll() is None:
            self._signal(signal.SIGKILL)
        self._reap()

    def restart(self, timeout: float = 60.0) -> float:
        """Stop cleanly and start again; return the seconds that the start took."""
        self.stop()
        return self.start(timeout)

    @property
    def running(self) -> bool:
        """Return whether the node's process has not ended; it may be frozen."""
        return self._node is not None and self._node.poll() is None

    @property
    def serving(self) -> bool:
        """Return whether the node's process runs and is not frozen."""
        return self.running and not self._frozen

    def close(self) -> None:
        """Kill all processes and remove the directory. May be called twice."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        deadline = time.monotonic() + 5.0
        while self.pids() and time.monotonic() < deadline:  # helpers follow the node by themselves
            time.sleep(0.01)
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def pids(self) -> list[int]:
        """Return the processes of this node, found by their environment: its helpers and epmd too.

        Empty where there is no /proc.
        """
        mark = f"RABBITMQ_NODENAME={self.name}\0".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:  # it has ended, or belongs to another user
                continue
        return found

    # Faults

    def pause(self) -> None:
        """Freeze the node (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)
        self._frozen = True
        assert self._node is not None
        # The signal is only on its way: threads of the node run until each has received it.
        os.waitid(os.P_PID, self._node.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Resume a frozen node."""
        self._signal(signal.SIGCONT)
        self._frozen = False

    def close_all_connections(self, reason: str) -> None:
        """Close every client connection from the broker's side, as an operator does."""
        text = _string(reason)
        # A connection may end at the same time, and a new one is listed a moment later.
        self.eval(
            "pg_local:sync(), [catch rabbit_networking:close_connection(Pid, "
            f"{text}) || Pid <- rabbit_networking:connections()]"
        )

    def memory_alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm: while it is on, publishers are blocked."""
        alarm = "{resource_limit, memory, node()}"
        # rabbit_alarm itself, and not the watermark: the memory monitor does not run everywhere.
        call = f"set_alarm({{{alarm}, []}})" if on else f"clear_alarm({alarm})"
        self.eval(f"rabbit_alarm:{call}")

    # Set up

    def add_vhost(self, name: str) -> None:
        """Create a virtual host that `guest` may use."""
        self.eval(f"ok = rabbit_vhost:add({_binary(name)}, {_binary('tests')})")
        self._permit("guest", name, ".*", ".*", ".*")

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host, its queues and messages; its connections are closed."""
        self.eval(f"rabbit_vhost:delete({_binary(name)}, {_binary('tests')})")

    def add_user(
        self,
        name: str,
        password: str,
        vhost: str = "/",
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
    ) -> None:
        """Create a user; `configure`, `write` and `read` are patterns of what it may touch."""
        user, secret, by = _binary(name), _binary(password), _binary("tests")
        self.eval(f"ok = rabbit_auth_backend_internal:add_user({user}, {secret}, {by})")
        self._permit(name, vhost, configure, write, read)

    def url(self, vhost: str = "/", user: str = "guest", password: str = "guest") -> str:
        """Return the URL of a virtual host, with its parts quoted."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"amqp://{login}@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    # Look

    def queues(self, vhost: str = "/") -> dict[str, QueueState]:
        """Return the queues of a virtual host by name, as they are now.

        What a quorum queue has dead-lettered, and no other queue has confirmed, is unacknowledged.
        """
        # The info of a quorum queue is as old as its last tick: query the queue itself.
        rows = self._rows(
            "begin Info = fun(Queue) -> [Number || {_, Number} <- rabbit_amqqueue:info("
            "Queue, [messages_ready, messages_unacknowledged, consumers])] end,"
            " Ask = fun(Queue) -> case catch"
            " ra:local_query(amqqueue:get_pid(Queue), fun rabbit_fifo:overview/1) of"
            " {ok, {_, #{num_ready_messages := Ready, num_checked_out := Held,"
            " num_discarded := Left, num_discard_checked_out := Leaving,"
            " num_consumers := Consumers}}, _} -> [Ready, Held + Left + Leaving, Consumers];"
            " _ -> Info(Queue) end end,"
            # The queue was deleted at the same time.
            " [[element(4, amqqueue:get_name(Queue)) | Numbers]"
            f" || Queue <- rabbit_amqqueue:list({_binary(vhost)}),"
            " Numbers <- [catch case amqqueue:get_type(Queue) of"
            " rabbit_quorum_queue -> Ask(Queue); _ -> Info(Queue) end],"
            " is_list(Numbers) andalso length(Numbers) =:= 3] end"
        )
        return {name: QueueState(*map(int, numbers)) for name, *numbers in rows}

    def consumers(self, vhost: str = "/") -> list[ConsumerState]:
        """Return the consumers of a virtual host, as they are now."""
        rows = self._rows(
            "[[element(4, proplists:get_value(queue_name, Consumer)),"
            " proplists:get_value(consumer_tag, Consumer),"
            " proplists:get_value(prefetch_count, Consumer)]"
            f" || Consumer <- rabbit_amqqueue:consumers_all({_binary(vhost)})]"
        )
        return [ConsumerState(queue, tag, int(prefetch)) for queue, tag, prefetch in rows]

    def connections(self, vhost: str = "/") -> int:
        """Return how many client connections to a virtual host are open."""
        return int(
            self.eval(
                # A separate process lists them, a moment after they were opened.
                "pg_local:sync(), length([Pid || Pid <- rabbit_networking:connections(),"
                " (catch rabbit_networking:connection_info(Pid, [vhost]))"
                f" =:= [{{vhost, {_binary(vhost)}}}]])"
            )
        )

    def channels(self, vhost: str = "/") -> int:
        """Return how many channels to a virtual host are open."""
        return int(
            self.eval(
                "pg_local:sync(), length([Pid || Pid <- rabbit_channel:list(),"
                f" (catch rabbit_channel:info(Pid, [vhost])) =:= [{{vhost, {_binary(vhost)}}}]])"
            )
        )

    # Talk

    def eval(self, expression: str, timeout: float = 10.0) -> str:
        """Evaluate Erlang inside the node; well under a millisecond for a simple one.

        Returns:
            The value as text; a binary as it is.

        Raises:
            RabbitFailed: The expression raised.
            OSError: The node is down, or did not answer within `timeout` (it is paused).
        """
        text = expression.rstrip().removesuffix(".") + "."
        with self._connect(timeout) as connection:
            request = text.encode()
            connection.sendall(struct.pack(">I", len(request)) + request)
            size: int = struct.unpack(">I", _read(connection, 4))[0]
            answer = _read(connection, size).decode()
        if answer[0] == "-":
            raise RabbitFailed(f"{text} raised {answer[1:]}")
        return answer[1:]

    def ctl(self, *args: str, timeout: float = 60.0) -> str:
        """Run `rabbitmqctl`, for what is harder with `eval`; a third of a second or more."""
        command = [str(self._installation.scripts / "rabbitmqctl"), "-q", *args]
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise RabbitFailed(f"rabbitmqctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    # Within

    def _prepare(self) -> None:
        """Create the directory, choose the ports, start the epmd of this node."""
        self.port = free_port()
        root = self._root = Path(tempfile.mkdtemp(prefix="rabbit-"))
        (root / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        (root / "rabbitmq.conf").write_text(f"disk_free_limit.absolute = 1MB\n{self._conf}\n")
        self._env = _environment(self._installation, root, self.name, self.port)
        if self._membership is not None:
            self._join(root, self._membership)
            return
        self._epmd = start_epmd(self._env)
        self._env["WORKERKIT_EPMD_PID"] = str(self._epmd.pid)

    def _join(self, root: Path, membership: Membership) -> None:
        """Use the cookie and the epmd of the cluster."""
        cookie = root / ".erlang.cookie"
        cookie.write_text(membership.cookie)
        cookie.chmod(0o400)
        self._env["ERL_EPMD_PORT"] = str(membership.epmd_port)
        self._env["WORKERKIT_EPMD_PID"] = str(membership.epmd_pid)

    def _boot(self, deadline: float) -> None:
        assert self._root is not None
        self._control.unlink(missing_ok=True)
        with (self._root / "output").open("wb") as output:
            self._node = subprocess.Popen(
                [str(self._installation.scripts / "rabbitmq-server")],
                cwd=self._root,  # where a crash dump would go
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        while not self._ready():
            if self._node.poll() is not None or time.monotonic() > deadline:
                self._give_up()
            time.sleep(0.02)

    def _ready(self) -> bool:
        """Return whether the node has started and replies to a client."""
        try:
            if self._lease is None:
                self._lease = self._connect(10.0)
            if self.eval("rabbit:is_running()") != "true":
                return False
            with socket.create_connection(("127.0.0.1", self.port), 10.0) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return _read(client, 1) == b"\x01"  # a method frame: connection.start
        except OSError:
            return False

    def _give_up(self) -> None:
        assert self._root is not None
        assert self._node is not None
        output = (self._root / "output").read_text(errors="replace")
        code = self._node.poll()
        end = "was not ready in time" if code is None else f"ended with {code}"
        text = f"RabbitMQ {end}:\n{output}"
        own_epmd = self._epmd
        clash = (own_epmd and own_epmd.poll() is not None) or _PORT_CLASH.search(output)
        raise _PortClash(text) if clash else RabbitFailed(text)

    def _signal(self, number: signal.Signals) -> None:
        if self._node is None or self._node.poll() is not None:
            raise RabbitFailed("this node is not running")
        os.killpg(self._node.pid, number)

    def _reap(self) -> None:
        """Collect an ending node, so that the next `start` finds no process of it."""
        if self._node is not None:
            self._node.wait()
            self._node = None
        self._frozen = False
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def _permit(self, user: str, vhost: str, configure: str, write: str, read: str) -> None:
        terms = ", ".join(map(_binary, (user, vhost, configure, write, read, "tests")))
        self.eval(f"ok = rabbit_auth_backend_internal:set_permissions({terms})")

    def _rows(self, expression: str) -> list[list[str]]:
        """Evaluate a list of rows, each of binaries and integers, to texts."""
        text = self.eval(
            "Text = fun(V) when is_binary(V) -> V; (V) -> integer_to_binary(V) end,"
            ' iolist_to_binary([[lists:join("\\t", lists:map(Text, Row)), "\\n"]'
            f" || Row <- {expression}])"
        )
        return [line.split("\t") for line in text.split("\n")[:-1]]

    @property
    def _control(self) -> Path:
        return Path(self._env["WORKERKIT_CONTROL"])

    def _connect(self, timeout: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(str(self._control))
        except BaseException:
            connection.close()
            raise
        return connection


def start_epmd(environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start the name server of Erlang nodes on the port that *environment* names.

    In the foreground, because a daemon would survive the node.
    """
    return subprocess.Popen(
        ["epmd", "-address", "127.0.0.1", "-port", environment["ERL_EPMD_PORT"]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _environment(installed: Installation, root: Path, name: str, port: int) -> dict[str, str]:
    """Return the environment for the scripts of RabbitMQ, without that of the caller."""
    arguments = (
        "-kernel inet_dist_use_interface {127,0,0,1}"
        # No path and no space in it: the scripts split this text at spaces and keep the quotes.
        ' -eval file:eval(os:getenv("WORKERKIT_CONTROL_SOURCE")).'
    )
    return {
        "PATH": installed.path,
        "HOME": str(root),  # of the cookie
        "LANG": "C.UTF-8",
        "ERL_CRASH_DUMP_SECONDS": "0",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(free_port()),
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(root / "data"),
        "RABBITMQ_LOG_BASE": str(root / "log"),
        "RABBITMQ_PID_FILE": str(root / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(root / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(root / "rabbitmq"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(root / "advanced"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": arguments,
        # Makes the script become the Erlang machine, not its parent: our child is the node itself.
        "RUNNING_UNDER_SYSTEMD": "true",
        "WORKERKIT_CONTROL": str(root / "control"),
        "WORKERKIT_CONTROL_SOURCE": str(_CONTROL),
    }


def _read(connection: socket.socket, size: int) -> bytes:
    """Read exactly this number of bytes."""
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the node closed the connection")
        data += part
    return data


def _binary(text: str) -> str:
    """Return an Erlang binary, safe for any text."""
    return f"<<{','.join(map(str, text.encode()))}>>"


def _string(text: str) -> str:
    """Return an Erlang string, safe for any text."""
    return f"[{','.join(map(str, map(ord, text)))}]"
