import os
import sys
import threading

import pytest

from embedlm.serving.cores import move_to, this_core


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_thread_moves_to_a_core_and_stays_free():
    allowed, seen = os.sched_getaffinity(0), []

    def run():
        for core in sorted(allowed):
            move_to(core)
            seen.append((core, this_core()))
        for no_core in (-1, 1 << 20):
            move_to(no_core)
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    *moves, after = seen
    assert after == allowed
    assert all(there in allowed for _, there in moves)
