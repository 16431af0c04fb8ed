"""The workloads by Python's own pools. Prints figures as lines of a key, a tab and a number.

usage: peers.py pool|pool-spawn|executor W1..W7 NAME=NUMBER...
"""

import concurrent.futures
import multiprocessing
import os
import socket
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
        self.context = multiprocessing.get_context(method)
        self.pool = self.context.Pool(workers)

    def submit(self, function, *arguments):
        return self.pool.apply_async(function, arguments)

    def call(self, function, *arguments):
        return self.pool.apply(function, arguments)

    def result(self, submitted):
        return submitted.get()

    def map(self, function, items, chunk=None):
        return self.pool.map(function, items, chunksize=chunk)

    def default_items(self, scale):
        return scale["items"]

    def end(self):
        self.pool.close()
        self.pool.join()

    @staticmethod
    def spawn_and_join(method):
        process = multiprocessing.get_context(method).Process(target=process_id)
        process.start()
        process.join()


class Executor:
    """concurrent.futures.ProcessPoolExecutor."""

    def __init__(self, method, workers):
        context = multiprocessing.get_context(method)
        self.pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)

    def submit(self, function, *arguments):
        return self.pool.submit(function, *arguments)

    def call(self, function, *arguments):
        return self.submit(function, *arguments).result()

    def result(self, submitted):
        return submitted.result()

    def map(self, function, items, chunk=1):
        return list(self.pool.map(function, items, chunksize=chunk))

    def default_items(self, scale):
        # Its default is a task for every item, which would take minutes.
        return scale["single_items"]

    def end(self):
        self.pool.shutdown()

    spawn_and_join = None


def all_answered(pool, workers):
    pids = set()
    while len(pids) < workers:
        submitted = [pool.submit(process_id) for _ in range(workers)]
        pids.update(pool.result(one) for one in submitted)
    return pids


def w1(make, scale):
    pool = make(scale["workers"])
    samples = []
    for n in range(WARM_UP + scale["calls"]):
        began = time.perf_counter()
        pool.call(successor, n)
        samples.append(time.perf_counter() - began)
    pool.end()
    samples = sorted(samples[WARM_UP:])
    last = len(samples) - 1
    yield "p50", samples[-(-last * 50 // 100)] * 1e6
    yield "p99", samples[-(-last * 99 // 100)] * 1e6


def w2(make, scale):
    pool = make(scale["workers"])
    all_answered(pool, scale["workers"])
    began = time.perf_counter()
    submitted = [pool.submit(successor, n) for n in range(scale["tasks"])]
    for one in submitted:
        pool.result(one)
    yield "rate", scale["tasks"] / (time.perf_counter() - began)
    pool.end()


def w3(make, scale):
    pool = make(scale["workers"])
    all_answered(pool, scale["workers"])
    items = pool.default_items(scale)
    began = time.perf_counter()
    pool.map(successor, range(items))
    yield "default", items / (time.perf_counter() - began)
    items = scale["items"]
    for chunk in scale["chunks"]:
        began = time.perf_counter()
        pool.map(successor, range(items), chunk)
        yield f"chunk {chunk}", items / (time.perf_counter() - began)
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
    for key in ["first", "again"]:
        began = time.perf_counter()
        pool = make(scale["workers"])
        all_answered(pool, scale["workers"])
        yield key, (time.perf_counter() - began) * 1e3
        pool.end()
    if make.spawn_and_join is not None:
        began = time.perf_counter()
        make.spawn_and_join(make.method)
        yield "join", (time.perf_counter() - began) * 1e3


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
        submitted = [pool.submit(successor, n) for n in range(scale["queued"])]
        yield "queued", (memory("self")[0] - before) * 100_000 / scale["queued"]
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

    def __call__(self, workers):
        return self.kind(self.method, workers)


def main():
    peers = {
        "pool": Make(Pool, "fork"),
        "pool-spawn": Make(Pool, "spawn"),
        "executor": Make(Executor, "fork"),
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
