"""Signals that end a run after its step."""

import os
import signal

import pytest

from ldm_jax.runtime.signals import SIGNALS, InterruptHandler, exit_code


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_stored(number):
  before = signal.getsignal(number)
  with InterruptHandler() as handler:
    assert handler.received is None and exit_code(handler.received) == 0
    os.kill(os.getpid(), number)
    assert handler.received is number
  assert signal.getsignal(number) is before
  assert exit_code(handler.received) == 128 + number


def test_a_later_signal_of_a_batch_system_does_not_end_the_save():
  with InterruptHandler() as handler:
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler.received is signal.SIGUSR1


def test_what_slurm_sends_before_the_end_is_among_them():
  assert {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2} <= {*SIGNALS}
