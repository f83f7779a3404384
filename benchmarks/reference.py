"""The experiments written plainly: straight loops, stock PyTorch, nothing shared with `nadkit`'s fast paths."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def input_derivative(model: nn.Module, x: Tensor, scale: float) -> Tensor:
    """Return the secant of one network at x by finite differences, all D coordinates in one batch: (D,)."""
    steps = scale * torch.eye(x.numel(), device=x.device).view(-1, *x.shape)
    with torch.no_grad():
        return (model(x + steps) - model(x - steps)).squeeze(1) / (2 * scale)


def nads(models: list[nn.Module], x: Tensor, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return NADs (K, D) and eigenvalues (K,): all derivatives kept, centred, and decomposed at the end."""
    derivatives = np.stack([input_derivative(model.eval(), x, scale).double().cpu().numpy() for model in models])
    centred = derivatives - derivatives.mean(0)
    _, singular_values, vectors = np.linalg.svd(centred, full_matrices=False)
    return vectors, singular_values**2 / (len(models) - 1)


def train(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    epochs: int,
    learning_rate: float,
    clip: float,
    device: str = "cpu",
    workers: int = 2,
) -> float:
    """Train by the textbook loop (DataLoader with workers, batches of 128) and return the test accuracy."""
    model.to(device)
    loader = DataLoader(TensorDataset(*train), batch_size=128, shuffle=True, num_workers=workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    total = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in DataLoader(TensorDataset(*test), batch_size=128, num_workers=workers):
            right += (model(x.to(device)).argmax(1).cpu() == y).sum().item()
    return right / len(test[0])
