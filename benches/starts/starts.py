"""Starts of processes by Python's multiprocessing, with data that is loaded first. Prints lines of a key, a tab and a
number.

usage: starts.py fork|forkserver|spawn STARTS HELD
"""

import multiprocessing
import sys
import time


def first(sender):
    """The first result, which needs what is loaded."""
    import starts_data

    sender.send(starts_data.total())


def hold(sender, gate):
    """Has used what is loaded, and stays."""
    first(sender)
    gate.recv()


def enter(barrier):
    """A pool's initializer."""
    import starts_data  # noqa: F401

    global MEETING
    MEETING = barrier


def meet(_):
    """Has used what is loaded when every worker of the pool has."""
    import os

    import starts_data

    starts_data.total()
    MEETING.wait()
    return os.getpid()


def proportional(pid):
    """Kilobytes, what is shared divided by those who share it."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


def main():
    method, starts, held = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    context = multiprocessing.get_context(method)
    if method == "fork":
        import starts_data  # noqa: F401
    elif method == "forkserver":
        context.set_forkserver_preload(["starts_data"])
    times = []
    for _ in range(starts + 1):
        receiver, sender = context.Pipe(duplex=False)
        began = time.perf_counter()
        process = context.Process(target=first, args=(sender,))
        process.start()
        receiver.recv()
        times.append(time.perf_counter() - began)
        process.join()
    print(f"first\t{times[0] * 1e3}")
    print(f"again\t{sorted(times[1:])[(len(times) - 1) // 2] * 1e3}")
    processes = []
    for _ in range(held):
        receiver, sender = context.Pipe(duplex=False)
        behind, gate = context.Pipe(duplex=False)
        process = context.Process(target=hold, args=(sender, behind))
        process.start()
        receiver.recv()
        processes.append((process, gate))
    print(f"memory\t{sum(proportional(process.pid) for process, _ in processes) / held / 1024}")
    for process, gate in processes:
        gate.send(None)
        process.join()
    barrier = context.Barrier(held)
    began = time.perf_counter()
    pool = context.Pool(held, enter, (barrier,))
    pids = pool.map(meet, range(held), 1)
    print(f"pool\t{(time.perf_counter() - began) * 1e3}")
    print(f"pool-memory\t{sum(map(proportional, pids)) / held / 1024}")
    pool.close()
    pool.join()


if __name__ == "__main__":
    main()
