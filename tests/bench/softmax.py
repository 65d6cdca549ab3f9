"""Full softmax in blocks against `F.cross_entropy` on whole logits: `python -m tests.bench.softmax`.

12,000 items x 4,096 targets x 64 floats, loss and gradients, with one thread and two. Each side lives in a
process of its own, where its peak memory is measured; their turns alternate. Seconds are of the processor
(divided by the threads), which hardly depend on what else the machine does. Writes runs/bench/softmax.json
and .md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from app.models.softmax import full_softmax
from app.terminal.console import say
from tests.bench.faults import publish, result_of
from tests.bench.faults_change import bar

ITEMS, TARGETS, WIDTH = 12_000, 4_096, 64
THREADS = (1, 2)
MEMORY_SHARE, MEMORY_MIB = 0.25, 200
Figures = dict[str, Any]


def ours(states: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    return full_softmax(states, rows, torch.arange(len(target)), target)


def whole(states: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(states @ rows[1:].T, target - 1)


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": ours, "cross_entropy": whole}


def serve(pipe: Connection, side: str, threads: int) -> None:
    """Answer each "turn" with (seconds on the clock, seconds of the processor, peak MiB), until "end"."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    states = torch.randn(TARGETS, WIDTH).mul_(0.5).requires_grad_()
    rows = torch.randn(ITEMS + 1, WIDTH).mul_(0.5).requires_grad_()
    target = torch.randint(1, ITEMS + 1, (TARGETS,))
    few = torch.arange(1, 65)  # loads what torch loads at its first products, and leaves no large memory free
    SIDES[side](states[:64], rows[:65], few).backward()  # type: ignore[no-untyped-call]
    while pipe.recv() == "turn":
        states.grad = rows.grad = None
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
        clock, processor = time.perf_counter(), time.process_time()
        SIDES[side](states, rows, target).backward()  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - clock, (time.process_time() - processor) / threads
        pipe.send((*seconds, _resident("VmHWM") - before))


def _resident(field: str) -> float:
    """MiB of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def compare(threads: int, rounds: int) -> Figures:
    """Both in turns; the ratio of times is the median of the rounds'."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for side in SIDES:
        pipes[side], end = context.Pipe()
        processes.append(context.Process(target=serve, args=(end, side, threads)))
        processes[-1].start()
    turns: dict[str, list[tuple[float, float, float]]] = {side: [] for side in SIDES}
    for number in range(rounds):
        # Each goes first as often as the other.
        for side in sorted(SIDES, reverse=number % 2 == 0):
            pipes[side].send("turn")
            turns[side].append(pipes[side].recv())
    for pipe in pipes.values():
        pipe.send("end")
    for process in processes:
        process.join()
    figures: Figures = {side: _summary(turns[side]) for side in SIDES}
    pairs = zip(turns["ours"], turns["cross_entropy"], strict=True)
    figures["time_ratio"] = round(statistics.median(theirs[1] / mine[1] for mine, theirs in pairs), 2)
    figures["memory_ratio"] = round(figures["ours"]["peak_mib"] / figures["cross_entropy"]["peak_mib"], 3)
    say(f"{threads} threads: {figures}")
    return figures


def _summary(turns: list[tuple[float, float, float]]) -> Figures:
    """Median seconds, and the largest peak: what was freed and is used again is in none but the first."""
    clock, processor, peak = zip(*turns, strict=True)
    times = {"processor_s": statistics.median(processor), "clock_s": statistics.median(clock)}
    return {name: round(value, 3) for name, value in times.items()} | {"peak_mib": round(max(peak), 1)}


def report(results: dict[str, Figures], rounds: int) -> Figures:
    bars = []
    for threads, figures in results.items():
        bars += [
            bar(f"cross_entropy's time over ours, threads {threads}", figures["time_ratio"], at_least=1),
            bar(
                f"our memory over cross_entropy's, threads {threads}",
                figures["memory_ratio"],
                at_most=MEMORY_SHARE,
            ),
            bar(f"our MiB, threads {threads}", figures["ours"]["peak_mib"], at_most=MEMORY_MIB),
        ]
    result = result_of("softmax", bars, {"rounds": rounds, "threads": results})
    result["versions"] = {"torch": torch.__version__}
    result["ratios"] = {f"cross_entropy_{threads}": f["time_ratio"] for threads, f in results.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    threads = [count for count in THREADS if count <= (os.cpu_count() or 1)]
    results = {str(count): compare(count, options.rounds) for count in threads}
    publish(report(results, options.rounds))


if __name__ == "__main__":
    main()
