"""Features that lie about a centre for each class, in place of a model's."""

import torch

from train.evaluation.features import Bank


def dataset(count, seed, *, spread=0.5, classes=3, blocks=4, mean=True, width=6):
    """Return a bank of `count` images; `blocks` 0 is without CLS tokens, as by a ResNet."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))

    def about(*shape):
        noise = torch.randn(count, *shape, width, generator=generator)
        return (centres[numbers].view(count, *[1] * len(shape), width) + spread * noise).half()

    return Bank(
        [f"class {n}" for n in numbers.tolist()],
        [f"{n:04d}" for n in range(count)],
        about(),
        about(blocks) if blocks else None,
        about() if mean else None,
    )


def relabelled(bank, labels):
    """Return the same features under other labels."""
    return Bank(labels, bank.keys, bank.pooled, bank.cls, bank.mean)
