"""A Slurm cluster of two nodes on loopback, in a folder of its own.

Nodes are named by loopback addresses, so that every name resolves; auth/none
needs no munge. Daemons end with the process that started them.
"""

import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable

NEEDED = {
  "slurmctld": "slurm-wlm",
  "slurmd": "slurm-wlm",
  "sbatch": "slurm-client",
  "setpriv": "util-linux",
}

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

CONFIG = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_delay=1,bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName=127.0.0.1 NodeHostname=localhost Port={ports[1]} CPUs=4 RealMemory=500
NodeName=127.0.0.2 NodeHostname=localhost Port={ports[2]} CPUs=4 RealMemory=500
PartitionName=all Nodes=127.0.0.[1-2] Default=YES State=UP
"""


def missing() -> str | None:
  """A Debian package that the cluster needs and this machine lacks."""
  path = os.environ.get("PATH", "") + ":/usr/sbin"
  lacks = [name for name in NEEDED if shutil.which(name, path=path) is None]
  return NEEDED[lacks[0]] if lacks else None


def wait_for(condition: Callable[[], object], seconds: float, what: str):
  """The first true value of `condition`; TimeoutError after `seconds`."""
  end = time.monotonic() + seconds
  while not (found := condition()):
    if time.monotonic() > end:
      raise TimeoutError(f"{what}: not within {seconds} s")
    time.sleep(0.1)
  return found


class Cluster:
  """Within `with`, slurmctld and two slurmd; no process is left after it.

  Args:
    folder: an empty folder for the configuration, logs and states.
    environment: what jobs have besides PATH and the like.
  """

  def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
    self.folder = folder
    self.environment = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith(("SLURM_", "SBATCH_", "OMPI_", "PMI"))
    } | {"SLURM_CONF": str(folder / "slurm.conf"), **environment}
    self.environment["PATH"] += ":/usr/sbin"
    self._daemons: list[subprocess.Popen] = []

  def __enter__(self) -> "Cluster":
    for name in ("state", "spool-127.0.0.1", "spool-127.0.0.2"):
      (self.folder / name).mkdir()
    config = CONFIG.format(
      folder=self.folder, ports=_free_ports(3), user=getpass.getuser()
    )
    (self.folder / "slurm.conf").write_text(config)
    try:
      self._start("slurmctld", "-D")
      for node in ("127.0.0.1", "127.0.0.2"):
        self._start("slurmd", "-D", "-N", node)
      wait_for(self._is_idle, 60, "two idle nodes")
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *_: object) -> None:
    self.call("scancel", "--user", getpass.getuser())
    for daemon in reversed(self._daemons):
      daemon.terminate()
    for daemon in self._daemons:
      try:
        daemon.wait(20)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    for pid in self.processes():
      os.kill(pid, signal.SIGKILL)

  def call(self, *command: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
      command,
      capture_output=True,
      text=True,
      **{
        "env": self.environment,
        "timeout": 120,
        "cwd": self.folder,
        **more,
      },
    )

  def submit(self, *arguments: str) -> str:
    """The number of a job that sbatch has taken."""
    done = self.call("sbatch", "--parsable", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

  def job(self, number: str) -> dict[str, str]:
    """What scontrol says of a job: JobState, ExitCode, Restarts."""
    text = self.call("scontrol", "show", "job", number).stdout
    pairs = (word.partition("=") for word in text.split())
    return {name: value for name, _, value in pairs}

  def ended(self, number: str, seconds: float = 120) -> dict[str, str]:
    """The job after it and its processes have ended."""

    def job():
      found = self.job(number)
      return found if found["JobState"] in ENDS else None

    return wait_for(job, seconds, f"the end of job {number}")

  def processes(self) -> list[int]:
    """Processes of this cluster: its daemons and what its jobs started."""
    mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
      try:
        if mark in path.read_bytes().split(b"\0"):
          found.append(int(path.parent.name))
      except OSError:  # it has ended, or is another user's
        continue
    return found

  def _start(self, *command: str) -> None:
    log = self.folder / f"{command[-1].strip('-')}.out"
    with log.open("w") as file:
      self._daemons.append(
        subprocess.Popen(
          ["setpriv", "--pdeathsig", "TERM", *command],
          stdout=file,
          stderr=file,
          env=self.environment,
          cwd=self.folder,
        )
      )

  def _is_idle(self) -> bool:
    found = self.call("sinfo", "-h", "-N", "-o", "%T").stdout.split()
    return found == ["idle", "idle"]


def _free_ports(count: int) -> list[int]:
  held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
  ports = [each.getsockname()[1] for each in held]
  for each in held:
    each.close()
  return ports
