"""Ports of coordinators: taken ones, other jobs', and two of one name."""

import contextlib
import socket
import subprocess
import sys
import threading

import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.runtime.devices import coordinator, processes

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def ports(monkeypatch):
  """Where no other test looks; all jobs have the same ones."""
  held = [socket.create_server((HOST, 0)) for _ in range(8)]
  free = sorted(each.getsockname()[1] // 2 * 2 for each in held)
  for each in held:
    each.close()
  found = list(dict.fromkeys(free))
  monkeypatch.setattr(coordinator, "ports", lambda job: found)
  monkeypatch.setattr(coordinator, "CONNECT_SECONDS", 0.3)
  return found


def test_jobs_with_the_same_ports_do_not_meet():
  addresses = {}
  for job in ("a", "b"):
    addresses[job] = coordinator.address(HOST, job, 0, 5)
  assert addresses["a"] != addresses["b"]
  for job in ("b", "a"):
    assert coordinator.address(HOST, job, 1, 5) == addresses[job]


def test_the_others_may_begin_before_process_0():
  found = []
  waiting = threading.Thread(
    target=lambda: found.append(coordinator.address(HOST, "a", 1, 20))
  )
  waiting.start()
  assert coordinator.address(HOST, "a", 0, 5) and waiting.join(20) is None
  assert found == [coordinator.address(HOST, "a", 2, 5)]


def test_ports_of_other_programs_are_passed_over(ports):
  """One that says nothing, one that says something, one on the odd port."""
  silent = socket.create_server((HOST, ports[0]))
  odd = socket.create_server((HOST, ports[1] + 1))
  found = coordinator.address(HOST, "a", 0, 5)
  assert found == f"{HOST}:{ports[2] + 1}"
  assert coordinator.address(HOST, "a", 1, 5) == found
  silent.close(), odd.close()


def test_two_of_one_name_are_one_line():
  coordinator.address(HOST, "a", 0, 5)
  with pytest.raises(ConfigError, match="another process 0 of a runs"):
    coordinator.address(HOST, "a", 0, 5)


def test_no_process_0_and_no_port_are_one_line(ports):
  coordinator.address(HOST, "b", 0, 5)
  with pytest.raises(ConfigError, match=f"of a did not answer on {HOST}"):
    coordinator.address(HOST, "a", 1, 0.5)
  held = []
  for port in ports[1:]:
    with contextlib.suppress(OSError):  # another program may hold it already
      held.append(socket.create_server((HOST, port)))
  with pytest.raises(ConfigError, match="are all taken; set JAX_COORDINATOR"):
    coordinator.address(HOST, "a", 0, 5)
  for each in held:
    each.close()


def test_a_given_port_must_be_free():
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=f"port {port} of JAX_COORDINATOR"):
      processes.initialize(
        {
          "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
          "JAX_NUM_PROCESSES": "2",
          "JAX_PROCESS_ID": "0",
        }
      )


def test_ports_are_pairs_in_range(monkeypatch):
  monkeypatch.undo()
  for job in map(str, range(300)):
    found = coordinator.ports(job)
    assert len(set(found)) == coordinator.CANDIDATES
    assert all(61440 <= port < 65535 and port % 2 == 0 for port in found)


def test_a_process_that_holds_a_port_ends():
  code = (
    "from ldm_jax.runtime.devices import coordinator;"
    f"print(coordinator.address('{HOST}', 'ends', 0, 5))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0 and done.stdout.startswith(HOST), done.stderr
