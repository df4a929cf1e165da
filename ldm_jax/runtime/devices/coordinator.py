"""The port of the coordinator, found by all processes of one job.

A launcher gives its processes the first host and a name that they share, but no
port that is free there. Process 0 takes the first free one of a few ports that
follow from the name, and answers each connection with a digest of it; the
others try the same ports until one answers with theirs. jax's coordinator then
has the next port: who holds an even port owns the odd one after it. Without
this, gRPC lets two coordinators of one user share a port (SO_REUSEPORT), and
processes of two jobs mix.
"""

import hashlib
import socket
import threading
import time
import zlib

from ldm_jax.errors import ConfigError

FIRST_PORT, PAIRS = 61440, 2048  # above the ephemeral ports, as jax's
CANDIDATES = 16
CONNECT_SECONDS = 2.0
RETRY_SECONDS = 0.2


def address(host: str, job: str, rank: int, seconds: int | float) -> str:
  """HOST:PORT of the coordinator of a job, the same for all its processes.

  Args:
    host: where process 0 runs.
    job: a name that the processes of this job share, and no others.
    rank: the number of this process.
    seconds: how long to wait for process 0.

  Raises:
    ConfigError: process 0 does not answer, all ports are taken, or another
      process 0 of this name runs.
  """
  port = _take(host, job) if rank == 0 else _find(host, job, seconds)
  return f"{host}:{port + 1}"


def require_free(port: int) -> None:
  """Raises ConfigError if another program of this host has the port."""
  try:
    _bind("", port).close()
  except OSError as error:
    raise ConfigError(
      f"port {port} of JAX_COORDINATOR_ADDRESS cannot be used on this host "
      f"({error.strerror}); give all processes of this run another one"
    ) from error


def ports(job: str) -> list[int]:
  """The even ports that a job may use, in the order in which it tries them."""
  first = zlib.crc32(job.encode())
  return [FIRST_PORT + 2 * ((first + i) % PAIRS) for i in range(CANDIDATES)]


def _take(host: str, job: str) -> int:
  """Holds the first free port until this process ends."""
  bound = "127.0.0.1" if host == "127.0.0.1" else ""
  for port in ports(job):
    try:
      server = _bind(bound, port)
    except OSError:
      if _ask(host, port) == _digest(job):
        raise ConfigError(
          f"another process 0 of {job} runs on {host}; set another "
          "JAX_COORDINATOR_ADDRESS=HOST:PORT for each of the two runs"
        ) from None
      continue
    try:
      _bind("", port + 1).close()
    except OSError:
      server.close()
      continue
    arguments = (server, _digest(job))
    threading.Thread(target=_answer, args=arguments, daemon=True).start()
    return port
  raise ConfigError(
    f"the {CANDIDATES} ports of {job} on {host}, from {ports(job)[0]}, are all "
    "taken; set JAX_COORDINATOR_ADDRESS=HOST:PORT for all processes"
  )


def _find(host: str, job: str, seconds: int | float) -> int:
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    for port in ports(job):
      if _ask(host, port) == _digest(job):
        return port
    time.sleep(RETRY_SECONDS)
  raise ConfigError(
    f"process 0 of {job} did not answer on {host} within {seconds:.0f} s; if "
    f"it runs there, open the ports {FIRST_PORT} to "
    f"{FIRST_PORT + 2 * PAIRS - 1}, or set "
    "JAX_COORDINATOR_ADDRESS=HOST:PORT for all processes"
  )


def _bind(host: str, port: int) -> socket.socket:
  """Raises OSError if any other socket has the port, of this user too."""
  return socket.create_server((host, port), backlog=1024)


def _answer(server: socket.socket, digest: bytes) -> None:
  while True:
    try:
      with server.accept()[0] as connection:
        connection.sendall(digest)
    except OSError:  # the other one ended before it was answered
      continue


def _ask(host: str, port: int) -> bytes:
  """What a server sends at once; empty if there is none, or another's."""
  size, found = hashlib.sha256().digest_size, b""
  try:
    with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
      while len(found) < size and (more := connection.recv(size)):
        found += more
  except OSError:
    return b""
  return found


def _digest(job: str) -> bytes:
  return hashlib.sha256(job.encode()).digest()
