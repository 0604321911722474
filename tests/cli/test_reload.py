"""`workerkit run --reload`: the process is started again when a file changes."""

import signal
from pathlib import Path

import pytest

from tests.command import running, workerkit, write_package
from workerkit.cli.run import _check_reload
from workerkit.errors import ConfigurationError

TASK = """
    import os
    from pathlib import Path

    from workerkit import PeriodicTask


    class Beat(PeriodicTask):
        every = 1000.0

        async def on_start(self) -> None:
            print("{text}", os.environ.get("COLOUR"), flush=True)

        async def on_stop(self) -> None:
            print("stopped {text}", flush=True)

        async def handle(self) -> None: ...
"""


async def test_each_change_starts_the_application_again(tmp_path: Path) -> None:
    """Faults are shown, and wait for the next change; many changes at once are one."""
    package = tmp_path / write_package(tmp_path, tasks=TASK.format(text="one"))
    more = tmp_path / "texts"
    more.mkdir()

    async with running("app", "--reload", "--reload-dir", "texts", cwd=tmp_path) as app:
        await app.says("one None")
        assert "reload: watching app, texts" in app.err
        # What it ignores would restart it before the change that counts.
        (package / "log.txt").write_text("written by the application")
        (package / "tasks.py").write_text("class")
        await app.says("cannot import app.tasks: SyntaxError")
        await app.says("reload: ended with code 2: waiting for a change")
        for number in range(5):
            (package / f"extra{number}.py").write_text("")
        write_package(tmp_path / "new", tasks=TASK.format(text="two"))
        (tmp_path / "new" / "app" / "tasks.py").replace(package / "tasks.py")
        await app.says("two None")
        (more / "mail.html").write_text("<p>")
        await app.says("reload: restarting: texts/mail.html")
        await app.says("stopped two")
        (package / "tasks.py").write_text("import os\nos._exit(7)")
        await app.says("reload: ended with code 7: waiting for a change")
        app.send(signal.SIGINT)
        app.send_group(signal.SIGINT)
        code = await app.ended()

    restarts = [line for line in app.err if line.startswith("reload: restarting")]
    assert restarts[0] == "reload: restarting: app/tasks.py"
    assert restarts[1] == (
        "reload: restarting: app/extra0.py, app/extra1.py, app/extra2.py and 3 more"
    )
    assert "stopped one" in app.out
    assert code == 0, app


def test_a_package_that_does_not_exist(tmp_path: Path) -> None:
    """No change of a file would correct it."""
    run = workerkit("run", "shopp", "--reload", cwd=tmp_path)

    assert run.returncode == 2
    assert run.stderr == f"there is no package 'shopp' in {tmp_path} or on sys.path\n"


def test_without_watchfiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message shows what to install."""
    monkeypatch.setattr("workerkit.cli.run.find_spec", lambda name: None)

    with pytest.raises(ConfigurationError, match=r"pip install 'workerkit\[reload\]'"):
        _check_reload(None)
