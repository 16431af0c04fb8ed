"""The workloads by Python's pools. Prints figures as lines of a key, a tab and a number.

usage: peers.py pool|pool-spawn|executor|loky|mpire|pebble W1..W7 NAME=NUMBER...
       peers.py versions
"""

import concurrent.futures
import multiprocessing
import os
import socket
import statistics
import sys
import time

WARM_UP = 100


def successor(n):
    return n + 1


def echo(data):
    return data


def process_id():
    return os.getpid()


def hold(port):
    with socket.create_connection(("127.0.0.1", port)) as gate:
        gate.recv(1)


def compute(steps):
    x = 1
    for _ in range(steps):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
    return x


class Pool:
    """multiprocessing.Pool."""

    def __init__(self, method, workers):
        self.pool = multiprocessing.get_context(method).Pool(workers)

    def submit(self, function, *arguments):
        return self.pool.apply_async(function, arguments)

    def call(self, function, *arguments):
        return self.pool.apply(function, arguments)

    def result(self, submitted):
        return submitted.get()

    def map(self, function, items, chunk=None):
        return self.pool.map(function, items, chunksize=chunk)

    def end(self):
        self.pool.close()
        self.pool.join()

    # Whether its map makes a task of each item by default, which would take minutes for all items.
    single_by_default = False
    # Whether a map in good chunks is too slow for all items.
    slow_map = False

    @staticmethod
    def spawn_and_join(method):
        process = multiprocessing.get_context(method).Process(target=process_id)
        process.start()
        process.join()


class Executor:
    """concurrent.futures.ProcessPoolExecutor."""

    single_by_default = True
    slow_map = False
    spawn_and_join = None

    def __init__(self, method, workers):
        self.pool = self.make(workers, multiprocessing.get_context(method))

    @staticmethod
    def make(workers, context):
        return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)

    def submit(self, function, *arguments):
        return self.pool.submit(function, *arguments)

    def call(self, function, *arguments):
        return self.submit(function, *arguments).result()

    def result(self, submitted):
        return submitted.result()

    def map(self, function, items, chunk=1):
        return list(self.pool.map(function, items, chunksize=chunk))

    def end(self):
        self.pool.shutdown()


class Loky(Executor):
    """loky's executor, with its own start method, the only one that it is documented for."""

    def __init__(self, method, workers):
        import loky

        self.pool = loky.ProcessPoolExecutor(workers)


class Mpire(Executor):
    """mpire.WorkerPool. It maps only as long as it has run no single task; here no pool does both."""

    slow_map = True

    def __init__(self, method, workers):
        import mpire

        self.pool = mpire.WorkerPool(n_jobs=workers, start_method=method)

    def submit(self, function, *arguments):
        return self.pool.apply_async(function, arguments)

    def call(self, function, *arguments):
        return self.pool.apply(function, arguments)

    def result(self, submitted):
        return submitted.get()

    def map(self, function, items, chunk=None):
        return self.pool.map(function, items, chunk_size=chunk)

    def end(self):
        self.pool.stop_and_join()


class Pebble(Executor):
    """pebble.ProcessPool."""

    slow_map = True

    @staticmethod
    def make(workers, context):
        import pebble

        return pebble.ProcessPool(max_workers=workers, context=context)

    def submit(self, function, *arguments):
        return self.pool.submit(function, None, *arguments)

    def map(self, function, items, chunk=1):
        return list(self.pool.map(function, items, chunksize=chunk).result())

    def end(self):
        self.pool.close()
        self.pool.join()


def all_answered(pool, workers):
    pids = set()
    while len(pids) < workers:
        submitted = [pool.submit(process_id) for _ in range(workers)]
        pids.update(pool.result(one) for one in submitted)
    return pids


def w1(make, scale):
    pool = make(scale["workers"])
    samples = []
    for n in range(WARM_UP + scale["slow_calls"]):
        began = time.perf_counter()
        pool.call(successor, n)
        samples.append(time.perf_counter() - began)
    samples = sorted(samples[WARM_UP:])
    last = len(samples) - 1
    yield "p50", samples[-(-last * 50 // 100)] * 1e6
    yield "p99", samples[-(-last * 99 // 100)] * 1e6
    pool.end()


def w2(make, scale):
    pool = make(scale["workers"])
    all_answered(pool, scale["workers"])
    began = time.perf_counter()
    submitted = [pool.submit(successor, n) for n in range(scale["slow_tasks"])]
    for one in submitted:
        pool.result(one)
    yield "rate", scale["slow_tasks"] / (time.perf_counter() - began)
    pool.end()


def w3(make, scale):
    pool = make(scale["workers"])
    pool.map(successor, range(scale["workers"] * 10))
    items = scale["slow_items" if pool.slow_map else "items"]
    for chunk in scale["chunks"]:
        if chunk * scale["workers"] <= items:
            began = time.perf_counter()
            pool.map(successor, range(items), chunk)
            yield f"chunk {chunk}", items / (time.perf_counter() - began)
    items = scale["single_items" if pool.single_by_default else "items"]
    began = time.perf_counter()
    pool.map(successor, range(items))
    yield "default", items / (time.perf_counter() - began)
    pool.end()


def w4(make, scale):
    pool = make(scale["workers"])
    for key in ["small", "large"]:
        size, echoes = scale[f"{key}_bytes"], scale[f"{key}_echoes"]
        data = bytes(size)
        pool.call(echo, data)
        began = time.perf_counter()
        for _ in range(echoes):
            pool.call(echo, data)
        yield key, 2 * size * echoes / (time.perf_counter() - began) / 1e6
    pool.end()


def w5(make, scale):
    # Interpreters that are started anew are given fewer tries.
    starts = 1 if make.is_slow_to_start else scale["starts"]
    times = []
    for _ in range(1 + starts):
        began = time.perf_counter()
        pool = make(scale["workers"])
        all_answered(pool, scale["workers"])
        times.append((time.perf_counter() - began) * 1e3)
        pool.end()
    yield "first", times[0]
    yield "again", statistics.median(times[1:])
    if make.spawn_and_join is not None:
        times = []
        for _ in range(starts):
            began = time.perf_counter()
            make.spawn_and_join(make.method)
            times.append((time.perf_counter() - began) * 1e3)
        yield "join", statistics.median(times)


def memory(process):
    """Resident and private memory in MiB."""
    fields = {}
    with open(f"/proc/{process}/smaps_rollup") as lines:
        for line in lines:
            words = line.split()
            if words[-1] == "kB":
                fields[words[0]] = int(words[1]) / 1024
    return fields["Rss:"], fields["Private_Clean:"] + fields["Private_Dirty:"]


def w6(make, scale):
    workers = scale["workers"]
    pool = make(workers)
    idle = [memory(pid) for pid in all_answered(pool, workers)]
    yield "resident", sum(resident for resident, _ in idle) / workers
    yield "private", sum(private for _, private in idle) / workers
    with socket.create_server(("127.0.0.1", 0)) as gate:
        held = [pool.submit(hold, gate.getsockname()[1]) for _ in range(workers)]
        waiting = [gate.accept()[0] for _ in range(workers)]
        before = memory("self")[0]
        submitted = [pool.submit(successor, n) for n in range(scale["slow_queued"])]
        yield "queued", (memory("self")[0] - before) * 1024 * 1024 / scale["slow_queued"]
        for connection in waiting:
            connection.close()
    for one in held + submitted:
        pool.result(one)
    pool.end()


def ten_milliseconds():
    steps, best = 20_000, float("inf")
    for _ in range(20):
        began = time.perf_counter()
        compute(steps)
        best = min(best, time.perf_counter() - began)
    return int(steps * 0.010 / best)


def w7(make, scale):
    steps = ten_milliseconds()
    times = []
    for workers in [1, 2]:
        pool = make(workers)
        pool.call(process_id)
        began = time.perf_counter()
        submitted = [pool.submit(compute, steps) for _ in range(scale["computations"])]
        for one in submitted:
            pool.result(one)
        times.append(time.perf_counter() - began)
        pool.end()
    yield "scaling", times[0] / (2 * times[1])


class Make:
    """Makes pools of one kind, with one start method."""

    def __init__(self, kind, method):
        self.kind, self.method = kind, method
        self.spawn_and_join = kind.spawn_and_join
        self.is_slow_to_start = kind is Loky or method == "spawn"

    def __call__(self, workers):
        return self.kind(self.method, workers)


def versions():
    from importlib import metadata

    for package in ["loky", "mpire", "pebble"]:
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            pass


def main():
    if sys.argv[1:] == ["versions"]:
        return versions()
    peers = {
        "pool": Make(Pool, "fork"),
        "pool-spawn": Make(Pool, "spawn"),
        "executor": Make(Executor, "fork"),
        "loky": Make(Loky, None),
        "mpire": Make(Mpire, "fork"),
        "pebble": Make(Pebble, "fork"),
    }
    workloads = {"W1": w1, "W2": w2, "W3": w3, "W4": w4, "W5": w5, "W6": w6, "W7": w7}
    peer, workload = sys.argv[1:3]
    scale = {}
    for argument in sys.argv[3:]:
        name, _, number = argument.partition("=")
        scale[name] = [int(n) for n in number.split(",")] if name == "chunks" else int(number)
    for key, figure in workloads[workload](peers[peer], scale):
        print(f"{key}\t{figure}", flush=True)


if __name__ == "__main__":
    main()
