"""A synthetic family: what tells classes apart lies in few directions, the same in all domains, under much noise."""

from __future__ import annotations

import torch

from metasearch.tasks.domains import Domain
from metasearch.tasks.task import Normalisation

NUMBERS, INFORMATIVE = 16, 3
NOISE = 3.0


def noisy_domain(seed: int, *, classes: int = 5, examples: int = 30) -> Domain:
    """Return a domain of vectors (NUMBERS,): class centres in INFORMATIVE directions, noise in the others."""
    directions, _ = torch.linalg.qr(torch.randn(NUMBERS, NUMBERS, generator=torch.Generator().manual_seed(99)))
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, INFORMATIVE, generator=generator)
    labels = torch.arange(classes).repeat(examples)
    signal = centres[labels] + 0.3 * torch.randn(len(labels), INFORMATIVE, generator=generator)
    noise = NOISE * torch.randn(len(labels), NUMBERS - INFORMATIVE, generator=generator)
    return Domain(
        name=f"noisy{seed}",
        inputs=torch.cat([signal, noise], dim=1) @ directions.T,
        labels=labels,
        class_names=tuple(f"noisy{seed}/{index}" for index in range(classes)),
        splits=torch.arange(len(labels)) * 3 // len(labels),
        normalisation=Normalisation((1.0,) * NUMBERS, (0.0,) * NUMBERS),
    )
