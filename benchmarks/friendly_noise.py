"""Friendly noise: images a second, for the batch of the paper and larger ones, against the released form.

The released form runs batches of 128 and calls loss.backward() on a network whose weights require gradients, so that it
also computes the gradients of all weights and throws them away. `largest difference` is over all pixels of the finished
noise, in levels of 255, against our noise at batch 128; `pixels that differ` counts them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import alternate, network, options, photographs, show, start
from torch import Tensor

from bench.defenses.friends import REFERENCE_BATCH, FriendsSettings, friendly_noise
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.seeds import torch_stream
from bench.science.training import Recipe, to_pixels, train


def main() -> None:
    parser = options(__doc__, repeats=3, sizes=(16,))
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--steps", type=int, default=5, help="steps on the noise; published: 20")
    parser.add_argument("--images", type=int, default=4096, help="images that get noise; rounded to the batch of 128")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512, 1024, 4096])
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the network before the noise is made")
    args = parser.parse_args()
    device = start(args)
    count = max(args.images // REFERENCE_BATCH, 1) * REFERENCE_BATCH  # a last, smaller batch takes larger steps
    rows = []
    for size in args.sizes:
        dataset = photographs(size, -(-count // 10))
        data, model = dataset.train.subset(torch.arange(count)).to(device), network(args.model, dataset, device)
        few = dataset.train.subset(torch.arange(0, len(dataset.train), 4)).to(device)
        train(model, few, Recipe(epochs=args.epochs, batch=64, lr=0.05, schedule="one-cycle"), seed=0)
        noise: dict[str, Tensor] = {}
        makers = {"released form, 128": (released, 128)} | {f"bench, {b}": (friendly_noise, b) for b in args.batches}
        work = {
            name: keep(noise, name, make, model, data, FriendsSettings(steps=args.steps, batch=batch))
            for name, (make, batch) in makers.items()
        }
        times = alternate(work, args.repeats, device)
        reference = noise[f"bench, {args.batches[0]}"].short()
        for name in work:
            difference = (noise[name].short() - reference).abs()
            rows.append(
                {
                    "size": size,
                    "noise": name,
                    "images/s": count / times.median(name),
                    "times released": times.ratio("released form, 128", name),
                    f"times batch {args.batches[0]}": times.ratio(f"bench, {args.batches[0]}", name),
                    "largest difference": int(difference.max()),
                    "pixels that differ": int((difference > 0).sum()),
                    "of": difference.numel(),
                }
            )
    show(args, rows)


def keep(
    noise: dict[str, Tensor],
    name: str,
    make: Callable[..., Tensor],
    model: Classifier,
    data: Images,
    settings: FriendsSettings,
) -> Callable[[], None]:
    """Work to be timed, whose result stays in `noise`. Each call starts from the same random stream."""

    def work() -> None:
        noise[name] = make(model, data, settings, torch_stream(data.images.device, 0, "friendly"))

    return work


def released(model: Classifier, data: Images, settings: FriendsSettings, stream: torch.Generator) -> Tensor:
    """Algorithm 1 in the form of the released code: loss.backward() through weights that require gradients."""
    model.eval().requires_grad_(True)
    bound, parts = settings.zeta / 255, []
    for images in data.images.split(REFERENCE_BATCH):
        pixels = to_pixels(images)
        initial = min(8 / 255, bound)
        noise = torch.empty_like(pixels).uniform_(-initial, initial, generator=stream).requires_grad_(True)
        optimizer = torch.optim.SGD([noise], lr=settings.lr, momentum=0.9, nesterov=True)
        with torch.no_grad():
            clean = F.log_softmax(model(pixels), dim=1)
        for _ in range(settings.steps):
            inside = noise.clamp(-bound, bound)
            logits = model((pixels + inside).clamp(0, 1))
            divergence = F.kl_div(F.log_softmax(logits, 1), clean, reduction="batchmean", log_target=True)
            loss = divergence - settings.lambda_ * inside.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        parts.append(torch.round(noise.detach().clamp(-bound, bound) * 255).to(torch.int8))
    model.zero_grad()
    return torch.cat(parts)


if __name__ == "__main__":
    main()
