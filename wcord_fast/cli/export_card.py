"""The card of an exported network: architecture, training, results, and how to load it."""

from __future__ import annotations

from typing import Any

from .. import __version__
from .trained_network import TrainedNetwork

MEASURES = {  # column of a run's history -> its name on the card
    "test_top1": "test top-1, last epoch (%)",
    "best_top1": "test top-1, best epoch (%)",
    "test_top5": "test top-5, last epoch (%)",
    "test_loss": "test cross entropy, last epoch",
    "train_top1": "training top-1, last epoch (%)",
}

CARD = """---
library_name: wcord_fast
pipeline_tag: image-classification
tags: [knowledge-distillation, {method}]
---

# {model}, trained by {method}

A `{model}` for {classes} classes of the data set `{data}`, after {epoch} epochs of `{method}` with
wcord_fast {version}.

```python
from wcord_fast import models

network = models.create("hf-folder:FOLDER").eval()  # FOLDER: where this file is
logits = network(images)  # float32 [batch, {shape}], {input}
```

## Results

| measure | value |
|---|---|
{results}

## Recipe

| option | value |
|---|---|
{recipe}
"""


def card(trained: TrainedNetwork, metadata: dict[str, Any]) -> str:
    """The card in Markdown, with the numbers of the checkpoint."""
    last = trained.history[-1] if trained.history else {}
    return CARD.format(
        model=metadata["model"],
        method=trained.method,
        classes=len(trained.classes),
        data=trained.data["name"],
        epoch=trained.epoch,
        version=__version__,
        shape=", ".join(map(str, metadata["image_shape"])),
        input=metadata["input"],
        results=_lines({text: f"{last[key]:.4g}" for key, text in MEASURES.items() if key in last}),
        recipe=_lines({key: v for key, v in trained.recipe.items() if v is not None and v is not False}),  # but 0
    )


def _lines(values: dict[str, Any]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in values.items()) or "| none was kept | |"
