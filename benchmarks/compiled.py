"""`torch.compile`: a training step of a compiled network against the same step without, and what compiling takes.

Both networks, both precisions, one step of SGD on one batch, in turns in one process, with the allocator as in a run.
`s to compile` is the first step, which compiles the forward and the backward pass; `pays after` counts the images of a
training after which the time saved is that.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import alternate, network, options, photographs, show, start

from bench.foundation.allocator import keep_freed_memory
from bench.science.precision import Precision, computing_in
from bench.science.training import Recipe, make_optimizer

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
STEPS = 12  # timed together


def main() -> None:
    parser = options(__doc__, repeats=7)
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    device = start(args)
    keep_freed_memory()
    rows: list[dict[str, object]] = []
    for size in args.sizes:
        for precision in PRECISIONS:
            plain, compiled = (make_step(args.model, size, args.batch, precision, device, c) for c in (False, True))
            began = time.perf_counter()
            compiled()
            first = time.perf_counter() - began
            plain()
            steps = {"plain": plain, "compiled": compiled}
            times = alternate({n: functools.partial(several, s) for n, s in steps.items()}, args.repeats, device)
            faster = times.ratio("plain", "compiled")
            rate = STEPS * args.batch / times.median("plain")
            pays = first * rate * faster / (faster - 1) if faster > 1 else math.inf
            row = {"size": size, "precision": precision, "images/s": rate, "compiled is faster by": faster}
            rows.append({**row, "s to compile": first, "pays after": pays})
    show(args, rows)


def several(step: Callable[[], None]) -> None:
    for _ in range(STEPS):
        step()


def make_step(
    model: str, size: int, batch: int, precision: Precision, device: torch.device, compiled: bool
) -> Callable[[], None]:
    dataset = photographs(size)
    net = network(model, dataset, device).train()
    optimizer = make_optimizer(net, Recipe())
    forward = torch.compile(net) if compiled else net
    chance = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, size, size, generator=chance).to(device, memory_format=torch.channels_last)
    y = torch.randint(0, len(dataset.classes), (batch,), generator=chance).to(device)

    def step() -> None:
        with computing_in(precision, device):
            loss = F.cross_entropy(forward(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
