"""Threads that help with kernels: every item once, by whoever, also when several ask, after a fork and at the end."""

import concurrent.futures
import os
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest

from saccade.kernels.numba import team, threads
from saccade.kernels.numba.threads import get_threads, parallel_for, set_threads

# A kernel from a test is compiled without the cache, whose place belongs to saccade's own.
offer, shared = team.offer, team.shared


@numba.njit(nogil=True)
def count(work, counts, ones):
    for i in shared(offer(work)):
        counts[i] += ones[i]


@numba.njit(nogil=True)
def slow(work, counts, rounds):
    for i in shared(offer(work)):
        for j in range(rounds):
            counts[i] += j % 2


@numba.njit(nogil=True)
def failing(work, came):
    """An error in every helper, for the first of which the caller waits a while."""
    mine = offer(work)
    if mine[0] != 0 and mine[3] == 0:
        came[0] = 1
        raise MemoryError
    for _ in shared(mine):
        for _ in range(100_000):
            if came[0] == 0:
                team.give_way()


@numba.njit(nogil=True)
def helped(work, came):
    """Whether a helper came, for which the caller waits a while."""
    mine = offer(work)
    if mine[0] != 0 and mine[3] == 0:
        came[0] = 1
    for _ in shared(mine):
        for _ in range(1_000_000):
            if mine[0] != 0 and came[0] == 0:
                team.give_way()


@pytest.fixture
def four():
    before = get_threads()
    set_threads(4)
    yield
    set_threads(before)


def test_every_item_is_done_once(four):
    rng = np.random.default_rng(0)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        items = int(rng.integers(1, 200))
        counts = np.zeros(items, np.int64)
        parallel_for(count, items, 1, counts, np.ones(items, np.int64))
        assert (counts == 1).all()
        if rng.random() < 0.01:
            time.sleep(0.002)  # helpers fall asleep


def test_callers_at_once_do_not_wait_for_each_other_nor_mix_their_items(four):
    def call(i):
        counts = np.zeros(64, np.int64)
        parallel_for(slow, 64, 1, counts, 1000 + i)
        return (counts == (1000 + i) // 2).all()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(200)))


def test_a_helpers_error_reaches_the_caller(four):
    came = np.zeros(1, np.int64)
    parallel_for(failing, 1, 1, came)  # which compiles it
    with pytest.raises(MemoryError, match="failing: one of its threads found no memory"):
        for _ in range(100):  # helpers may be asleep when it begins
            parallel_for(failing, 2, 1, came)
    parallel_for(count, 64, 1, np.zeros(64, np.int64), np.ones(64, np.int64))


def test_helpers_sleep_and_are_woken(four):
    counts = np.zeros(64, np.int64)
    for _ in range(3):
        parallel_for(count, 64, 1, counts, np.ones(64, np.int64))
        deadline = time.monotonic() + 10
        while threads._team.memory[team.ASLEEP] < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert threads._team.memory[team.ASLEEP] >= 3  # more, if one was called as it fell asleep
    assert (counts == 3).all()


def test_a_kernel_called_as_a_helper_stops_looking_has_its_help(monkeypatch):
    """The caller finds nobody asleep and rings for nobody; the helper finds nothing, and falls asleep."""
    before, serve, called, came = get_threads(), team.serve, threading.Event(), np.zeros(1, np.int64)
    parallel_for(helped, 1, 1, came)  # which compiles it

    def held_back(address, seen):
        called.wait(10)
        return serve(address, seen)

    def wake(helpers):
        called.set()
        deadline = time.monotonic() + 10
        while not helpers.memory[team.ASLEEP] and time.monotonic() < deadline:
            time.sleep(0.001)

    monkeypatch.setattr(team, "serve", held_back)
    monkeypatch.setattr(threads._Team, "wake", wake)
    set_threads(2)
    try:
        parallel_for(helped, 2, 1, came)
        assert came[0] == 1
    finally:
        set_threads(before)


def test_changing_their_number_ends_the_old_ones(four):
    parallel_for(count, 64, 1, np.zeros(64, np.int64), np.ones(64, np.int64))
    old = threads._team
    set_threads(2)
    assert not any(one.is_alive() for one in old.threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_has_helpers_of_its_own(four):
    parallel_for(count, 64, 1, np.zeros(64, np.int64), np.ones(64, np.int64))
    child = os.fork()
    if child == 0:
        counts = np.zeros(64, np.int64)
        parallel_for(count, 64, 1, counts, np.ones(64, np.int64))
        os._exit(0 if (counts == 1).all() and threads._team.threads[0].is_alive() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_program_ends_while_helpers_are_awake():
    program = "import numpy, saccade; saccade.set_threads(4); saccade.gelu(numpy.ones((2000, 500), 'f')); print('end')"
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == "end\n" and not done.stderr


def in_a_process_with_torch(program):
    """Its output; ``torch`` computes with two threads there, and ``parallel_for`` has been given two as well."""
    beginning = (
        "import sys, threading, numpy as np, torch; sys.path.insert(0, sys.argv[1]);"
        "from test_numba_threads import count, failing, helped, threads, team, parallel_for, set_threads;"
        "torch.set_num_threads(2); set_threads(2); torch.ones(1 << 20).exp();"
        "ones = np.ones(64, np.int64); counts = np.zeros(64, np.int64)\n"
    )
    command = [sys.executable, "-P", "-c", beginning + program, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def torchs_openmp():
    pytest.importorskip("torch").ones(1)
    if not threads.loaded_openmp():
        pytest.skip("torch has no OpenMP of GNU's here")


def test_threads_of_torchs_openmp_help_where_it_is_loaded(torchs_openmp):
    program = """
for _ in range(100):
    parallel_for(count, 64, 1, counts, ones)
came = np.zeros(1, np.int64)
parallel_for(helped, 2, 1, came)
print((counts == 100).all(), came[0], len(threads._team.threads), threading.active_count())
"""
    assert in_a_process_with_torch(program) == "True 1 0 1"


def test_an_error_in_torchs_threads_reaches_the_caller(torchs_openmp):
    program = """
came = np.zeros(1, np.int64)
try:
    parallel_for(failing, 2, 1, came)
except MemoryError as error:
    print(error)
parallel_for(count, 64, 1, counts, ones)
print((counts == 1).all())
"""
    assert in_a_process_with_torch(program).splitlines() == ["failing: one of its threads found no memory", "True"]


def test_torchs_threads_are_left_alone_if_there_are_more_or_fewer(torchs_openmp):
    program = """
torch.set_num_threads(1)
parallel_for(count, 64, 1, counts, ones)
print((counts == 1).all(), len(threads._team.threads))
"""
    assert in_a_process_with_torch(program) == "True 1"


def test_threads_of_another_librarys_openmp_help_as_well():
    """Whichever is imported first or last; faiss brings one."""
    pytest.importorskip("faiss")
    program = """
import sys, threading
import numpy as np
sys.path.insert(0, sys.argv[1])
from saccade.kernels.numba import threads
from test_numba_threads import count, helped
threads.set_threads(2)
ones, counts, came = np.ones(64, np.int64), np.zeros(64, np.int64), np.zeros(1, np.int64)
threads.parallel_for(count, 64, 1, counts, ones)
before = len(threads._team.threads)
import faiss
faiss.omp_set_num_threads(2)
threads.set_threads(2)
threads.parallel_for(helped, 2, 1, came)
print("torch" in sys.modules, before, came[0], len(threads._team.threads), threading.active_count())
"""
    command = [sys.executable, "-P", "-c", program, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False 1 1 0 1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_wait_for_torchs_threads(torchs_openmp):
    program = """
import os, warnings
warnings.simplefilter("ignore")
parallel_for(count, 64, 1, counts, ones)
child = os.fork()
if child == 0:
    parallel_for(count, 64, 1, counts, ones)
    os._exit(0 if (counts == 2).all() and threads._team.threads[0].is_alive() else 1)
print(os.waitpid(child, 0)[1])
"""
    assert in_a_process_with_torch(program) == "0"
