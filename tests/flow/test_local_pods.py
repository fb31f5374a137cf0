"""Local mode with real namespaces, a real etcd and small shell scripts as containers.

Nothing here sleeps: a container holds a FIFO open, so that reading from it says when the container has begun (the first
byte) and when the last of its processes has died (the end of the file).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flow.survival_scene import until

from twinpod.errors import InputError
from twinpod.local.control import scale

SCENE = Path(__file__).with_name("local_scene.py")
IDLE = "trap 'exit 0' TERM; sleep 1000 & wait"
STATE = "/var/lib/twinpod/state"
HOLD = f"trap 'exit 0' TERM; exec 3>{STATE}/alive; echo begun >&3; sleep 1000 & wait"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="local mode needs root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run/state").mkdir(parents=True)
    os.mkfifo(tmp_path / "run/state/alive")
    return tmp_path / "run"


def command(folder: Path, main: str, sidecar: str = IDLE, restarts: int = 0) -> list[str]:
    return [sys.executable, str(SCENE), str(folder), main, sidecar, str(restarts)]


def play(folder: Path, main: str, sidecar: str = IDLE, restarts: int = 0) -> list[str]:
    done = subprocess.run(
        command(folder, main, sidecar, restarts), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    scene = subprocess.Popen(command(folder, HOLD), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield scene
    scene.kill()
    scene.communicate()


def log(folder: Path, container: str = "main") -> str:
    return (folder / f"logs/j-master.{container}.log").read_text()


def test_a_container_sees_its_volumes_and_its_name(folder: Path) -> None:
    look = (
        "cat /etc/twinpod/job/job.json; ls /etc/twinpod/tls; getent hosts j-master.j.default.svc; "
        f"df -k /dev/shm | tail -1; echo kept > {STATE}/file; echo $$; "
        "python -c 'import twinpod; print(twinpod.__name__)'"
    )
    assert play(folder, look) == ["succeeded: "]
    said = log(folder)
    assert "{}" in said
    assert "ca.crt\ntls.crt\ntls.key" in said
    assert "127.74." in said
    assert " 16384 " in said
    assert "\n1\n" in said  # process 1 of its own tree
    assert "\ntwinpod\n" in said  # the checkout is there, although /tmp is a volume
    assert (folder / "state/file").read_text() == "kept\n"


def test_a_model_in_a_hugging_face_cache_below_tmp_is_seen_with_what_its_links_lead_to(
    folder: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub/models--a--b/snapshots/0123"
    blobs = tmp_path / "hub/models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("weights of the cache\n")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    named = tmp_path / "by-name"
    named.symlink_to(snapshot)
    script = f"cat {named}/model.safetensors {snapshot}/model.safetensors"
    done = subprocess.run(
        [*command(folder, script), "", str(named)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["succeeded: "], done.stderr
    assert log(folder).count("weights of the cache") == 2


def test_configuration_and_secrets_cannot_be_written(folder: Path) -> None:
    (line,) = play(folder, "touch /etc/twinpod/job/new")
    assert line.startswith("failed: j-master/main ended with exit code 1")
    assert "Read-only file system" in line


def test_the_machine_sees_none_of_the_mounts(folder: Path) -> None:
    play(folder, "true")
    assert not Path("/etc/twinpod").exists()
    assert str(folder) not in Path("/proc/mounts").read_text()


def test_a_failed_pod_is_started_again_until_the_restarts_are_used_up(folder: Path) -> None:
    first, last = play(folder, "echo no such thing; exit 3", restarts=1)
    assert first.startswith("j-master/main ended with exit code 3: no such thing (log: ")
    assert first.endswith("restart 1 of 1")
    assert last.endswith("all 1 restarts are used up")


def test_a_pod_that_recovers_is_no_failure(folder: Path) -> None:
    lines = play(folder, f"test -e {STATE}/again || {{ touch {STATE}/again; exit 1; }}", restarts=3)
    assert len(lines) == 2
    assert lines[-1] == "succeeded: "


def test_wrong_input_is_never_retried(folder: Path) -> None:
    (line,) = play(folder, "echo spec.seed: is wrong; exit 2", restarts=3)
    assert line.startswith("failed: j-master/main ended with exit code 2: spec.seed: is wrong")


def test_a_dead_sidecar_is_started_again_while_the_pod_goes_on(folder: Path) -> None:
    die_once = f"test -e {STATE}/died && {{ echo up > {STATE}/alive; {IDLE}; }}; touch {STATE}/died; exit 7"
    lines = play(folder, f"read word < {STATE}/alive; echo $word", die_once)
    assert lines[0].startswith("j-master/side ended with exit code 7")
    assert lines[-1] == "succeeded: "
    assert "\nup\n" in log(folder)


def test_what_a_pod_wrote_is_kept_beside_the_fresh_volume_of_its_successor(folder: Path) -> None:
    play(folder, "test -e /run/twinpod/old && exit 9; echo 1 > /run/twinpod/old; exit 1", restarts=1)
    assert (folder / "pods/j-master/run.previous/old").exists()


def test_kill_9_of_the_command_leaves_no_process(folder: Path, held: subprocess.Popen[str]) -> None:
    with (folder / "state/alive").open() as alive:
        assert alive.readline() == "begun\n"
        held.send_signal(signal.SIGKILL)
        assert alive.read() == ""  # the end of the file: nobody holds it any more
    held.wait(timeout=10)
    assert until(lambda: processes_naming(str(folder)) == [], 10)  # etcd was killed too, and is nobody's child now


def test_kill_9_of_the_launcher_leaves_no_process_and_is_told(folder: Path, held: subprocess.Popen[str]) -> None:
    with (folder / "state/alive").open() as alive:
        alive.readline()
        (launcher,) = children_of(held.pid)
        os.kill(launcher, signal.SIGKILL)
        assert alive.read() == ""
    assert held.wait(timeout=10) == 128 + signal.SIGKILL
    assert processes_naming(str(folder)) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_within_the_grace(
    folder: Path, held: subprocess.Popen[str], number: signal.Signals
) -> None:
    with (folder / "state/alive").open() as alive:
        alive.readline()
        held.send_signal(number)
        assert alive.read() == ""
    said, _ = held.communicate(timeout=20)
    assert f"stopped by {number.name}" in said


def test_a_second_run_on_the_same_folder_is_refused(folder: Path, held: subprocess.Popen[str]) -> None:
    with (folder / "state/alive").open() as alive:
        alive.readline()
        second = subprocess.run(command(folder, "true"), capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert f"another run uses this folder (process {held.pid})" in second.stderr


def test_a_dead_etcd_is_started_again_from_its_data(folder: Path, held: subprocess.Popen[str]) -> None:
    assert held.stdout is not None
    with (folder / "state/alive").open() as alive:
        alive.readline()
        (etcd,) = processes_naming(f"--data-dir={folder}")
        os.kill(etcd, signal.SIGKILL)
        assert "etcd ended; starting it again" in held.stdout.readline()
        held.send_signal(signal.SIGTERM)
        assert alive.read() == ""
    assert "stopped by SIGTERM" in held.communicate(timeout=20)[0]


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processes_naming(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in words:
                found.append(int(entry.name))
    return found


def test_a_pool_is_scaled_while_the_job_runs_and_its_pods_may_say_farewell(folder: Path) -> None:
    os.mkfifo(folder / "state/end")
    helper = f"trap 'echo $HOSTNAME drained >> {STATE}/log; exit 0' TERM; echo begun > {STATE}/alive; sleep 1000 & wait"
    job = f"read word < {STATE}/end"
    line = [*command(folder, job), helper]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as scene:
        try:
            assert until((folder / "control.sock").exists, 20)
            with pytest.raises(InputError, match="no pool 'nobody'; its pools are: helpers"):
                scale(folder, "nobody", 1)
            with pytest.raises(InputError, match="runs 0 to 2 of a pool"):
                scale(folder, "helpers", 3)
            assert scale(folder, "helpers", 1) == 0
            with (folder / "state/alive").open() as alive:
                assert alive.readline() == "begun\n"
            assert scale(folder, "helpers", 0) == 1
            assert until((folder / "state/log").exists, 20)
            (folder / "state/end").write_text("over\n")
            said, _ = scene.communicate(timeout=20)
        finally:
            scene.kill()
    assert said.splitlines()[-1] == "succeeded: "
    assert not (folder / "control.sock").exists()
    assert "helpers-rollout-0/main starts" in (folder / "logs/helpers-rollout-0.main.log").read_text()
    assert not (folder / "logs/helpers-rollout-1.main.log").exists()


def test_a_pool_s_pod_that_fails_is_started_again_and_the_job_does_not_notice(folder: Path) -> None:
    os.mkfifo(folder / "state/end")
    helper = f"test -e {STATE}/again && {{ echo begun > {STATE}/alive; {IDLE}; }}; touch {STATE}/again; exit 5"
    line = [*command(folder, f"read word < {STATE}/end"), helper]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as scene:
        try:
            assert until((folder / "control.sock").exists, 20)
            scale(folder, "helpers", 1)
            with (folder / "state/alive").open() as alive:
                assert alive.readline() == "begun\n"
            (folder / "state/end").write_text("over\n")
            said, _ = scene.communicate(timeout=20)
        finally:
            scene.kill()
    first, last = said.splitlines()
    assert first.startswith("helpers-rollout-0/main ended with exit code 5")
    assert last == "succeeded: "
