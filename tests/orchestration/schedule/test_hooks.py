from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestration.schedule import hooks
from orchestration.schedule.cron import ScheduleError
from orchestration.schedule.firing import Firing, Schedule
from tests.orchestration.schedule.test_daemon import HOUR, looks
from tests.orchestration.schedule.world import World

FIRING = Firing("nightly", 1_795_500_000, "finished", exit_code=2, ok=5, failed=1, folder="/out/x", finished=1_795_500_060.0)


def schedule(folder: Path, **keys: str) -> Schedule:
    return Schedule("nightly", "/j.yaml", str(folder), "0 * * * *", "UTC", **keys)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Keeps what was posted to it in `posted`; below /refuse it answers 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path.startswith("/refuse") else 204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    posted: list[dict[str, object]] = []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.posted = posted  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_command_gets_json_that_describes_the_firing(tmp_path: Path) -> None:
    tell = tmp_path / "tell.py"
    tell.write_text("import sys; open('told.json', 'w').write(sys.stdin.read())")
    assert hooks.call(schedule(tmp_path, on_failure=f"{sys.executable} tell.py"), FIRING) is None
    told = json.loads((tmp_path / "told.json").read_text())
    expected = {
        "schedule": "nightly",
        "fire_time": "2026-11-24T06:00:00Z",
        "exit_code": 2,
        "failed": 1,
        "folder": "/out/x",
        "job_file": "/j.yaml",
    }
    assert expected.items() <= told.items()
    assert told["review"] == "/out/x/review/index.html"
    assert "some rows failed" in told["meaning"]


def test_a_webhook_gets_the_same_and_its_address_may_come_from_the_environment(
    tmp_path: Path, server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{server.server_port}/secret")
    assert hooks.call(schedule(tmp_path, webhook="$HOOK"), FIRING) is None
    (posted,) = server.posted  # pyright: ignore[reportAttributeAccessIssue]
    assert posted["job"] == "nightly-20261124T060000Z"


def test_what_goes_wrong_with_a_hook_is_said_and_never_its_address(tmp_path: Path, server: HTTPServer) -> None:
    address = f"http://127.0.0.1:{server.server_port}/refuse/secret"
    assert hooks.call(schedule(tmp_path, webhook=address), FIRING) == "127.0.0.1 answered 500"
    server.shutdown()
    server.server_close()
    problem = hooks.call(schedule(tmp_path, webhook=address, on_failure="no-such-command x"), FIRING)
    assert problem is not None
    assert "no-such-command: No such file" in problem
    assert "127.0.0.1 could not be reached" in problem
    assert "secret" not in problem
    assert hooks.call(schedule(tmp_path, webhook="$NOT_SET"), FIRING) is not None
    failing = f"{sys.executable} -c \"import sys; sys.exit('no mail today')\""
    assert hooks.call(schedule(tmp_path, on_failure=failing), FIRING) == f"{sys.executable} ended with 1: no mail today"


def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "COMMAND_S", 0.3)
    problem = hooks.call(schedule(tmp_path, on_failure=f"{sys.executable} -c 'import time; time.sleep(60)'"), FIRING)
    assert problem == f"{sys.executable} took longer than 0 s"


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"on_failure": "mail 'me"}, "--on-failure"), ({"on_failure": " "}, "write a command"), ({"webhook": "ftp://x"}, "write an http")],
)
def test_hooks_that_cannot_be_meant_are_refused(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        hooks.check(schedule(tmp_path, **keys))


@pytest.mark.parametrize(("code", "told"), [(0, False), (2, True), (64, True)])
def test_only_a_firing_that_did_not_end_with_0_is_told_and_once(tmp_path: Path, code: int, told: bool) -> None:
    world = World(tmp_path)
    world.schedule(on_failure="sh -c 'echo told >> told.txt'")
    daemon = world.daemon()
    world.passes(HOUR)
    looks(daemon)
    world.running[0].end(code)
    looks(daemon, times=4)
    assert (tmp_path / "told.txt").exists() == told
    assert not told or (tmp_path / "told.txt").read_text() == "told\n"
    assert [f.hook for f in world.firings()] == ["done" if told else None]


def test_a_failing_hook_stands_in_the_history_and_the_firing_is_finished_all_the_same(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.schedule(on_failure="no-such-command")
    daemon = world.daemon()
    world.passes(HOUR)
    looks(daemon)
    world.running[0].end(2)
    looks(daemon, times=3)
    (firing,) = world.firings()
    assert (firing.state, firing.exit_code, firing.hook) == ("finished", 2, "no-such-command: No such file or directory")


def test_a_daemon_killed_before_it_told_leaves_that_to_the_next(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.schedule(on_failure="sh -c 'echo told >> told.txt'")
    killed = world.daemon()
    world.passes(HOUR)
    looks(killed)
    (firing,) = world.firings("running")
    world.store.change(firing, state="finished", exit_code=2, hook="due")
    world.kill(killed)
    looks(world.daemon())
    assert (tmp_path / "told.txt").read_text() == "told\n"
