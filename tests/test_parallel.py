"""Gathering: what is left is cancelled, what is gathered is let go, and nothing is shared with the worker."""

import gc
import multiprocessing
import operator
import queue
import signal
import threading
import time
import weakref
from concurrent.futures import Executor, Future, ProcessPoolExecutor

import pytest
import torch

from nadkit.book import sweep
from nadkit.parallel import gather


class Inline(Executor):
    """Runs the first tasks as they are submitted; the others wait for ever."""

    def __init__(self, runs=100):
        self.runs, self.futures = runs, []

    def submit(self, function, /, *args):
        future = Future()
        self.futures.append(weakref.ref(future))
        self.keep = future if len(self.futures) > self.runs else None
        if len(self.futures) <= self.runs:
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
        return future


def test_every_task_gives_its_result():
    assert sorted(gather(Inline(), operator.add, [(1, 2), (3, 4), (5, 6)])) == [3, 7, 11]
    assert list(gather(Inline(), operator.add, [])) == []


def test_results_are_let_go_when_they_are_gathered():
    executor = Inline()
    for done, _ in enumerate(gather(executor, operator.neg, [(1,), (2,), (3,)]), start=1):
        gc.collect()
        assert sum(future() is not None for future in executor.futures) == 3 - done


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_cancels_what_waits(error):
    def fail():
        raise error

    executor = Inline(runs=1)
    results = gather(executor, fail, [()] * 3)
    with pytest.raises(error):
        next(results)
    assert executor.keep.cancelled()


def test_an_error_between_two_results_cancels_what_waits():
    def caller():
        for _ in gather(executor, operator.neg, [(1,), (2,)]):
            raise KeyboardInterrupt

    executor = Inline(runs=1)
    with pytest.raises(KeyboardInterrupt):
        caller()
    assert executor.keep.cancelled()


def test_an_error_while_submitting_cancels_what_waits():
    def tasks():
        yield (1,)
        raise KeyboardInterrupt

    executor = Inline(runs=0)
    with pytest.raises(KeyboardInterrupt):
        next(gather(executor, operator.neg, tasks()))
    assert executor.keep.cancelled()


def test_tensors_outlive_their_worker():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        (result,) = gather(pool, lambda t: t + 1, [(torch.zeros(3),)])
    assert result.tolist() == [1, 1, 1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "waiting",
    [lambda: list(gather(Inline(runs=0), operator.neg, [(1,)])), lambda: sweep._next(queue.SimpleQueue())],
    ids=["gather", "sweep"],
)
def test_an_interrupt_that_another_thread_got_is_heard(waiting):
    def interrupted() -> None:
        time.sleep(0.3)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupted)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            waiting()
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
