"""Signals while a run trains."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from medvlp_core.training.stop import StopRequest, raise_for_signal


def test_the_first_signal_is_noted_and_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGTERM", "a scheduler may ask after the user did"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_in_another_thread_nobody_handles_signals() -> None:
    found: list[object] = []

    def watch() -> None:
        with StopRequest() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert found == [(None, before)]


def test_a_signal_takes_effect_after_the_checkpoint() -> None:
    raise_for_signal(None)
    with pytest.raises(KeyboardInterrupt):
        raise_for_signal("SIGINT")
    with pytest.raises(SystemExit) as caught:
        raise_for_signal("SIGTERM")
    assert caught.value.code == 143
