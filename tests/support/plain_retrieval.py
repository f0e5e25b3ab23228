"""Zero-shot retrieval as it is plainly computed: whole forward passes of pairs padded together, every head, fp32.

So the original scores a gallery, and so the fast path is checked and timed.
"""

from collections.abc import Sequence

import torch

from tests.support.plain_vilbert import step_by_step


def padded(items: Sequence[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of different lengths as one batch, and where they are."""
    batch = items[0].new_zeros(len(items), length, *items[0].shape[1:])
    attended = torch.zeros(len(items), length, dtype=torch.bool)
    for row, item in enumerate(items):
        batch[row, : len(item)] = item
        attended[row, : len(item)] = True
    return batch, attended


@torch.no_grad()
def plain_logits(
    model: torch.nn.Module,
    texts: Sequence[torch.Tensor],
    images: Sequence[tuple[torch.Tensor, torch.Tensor]],
    words: int = 30,
    rows: int = 0,
    batch_size: int = 16,
) -> torch.Tensor:
    """The alignment logits of pairs: text i with image i, padded to so many words and rows (or the longest)."""
    words = max(words, *(len(text) for text in texts))
    rows = max(rows, *(len(regions) for regions, _ in images))
    logits = []
    with step_by_step():
        for start in range(0, len(texts), batch_size):
            batch, words_attended = padded(texts[start : start + batch_size], words)
            some = images[start : start + batch_size]
            regions, regions_attended = padded([regions for regions, _ in some], rows)
            locations, _ = padded([locations for _, locations in some], rows)
            output = model(batch, torch.zeros_like(batch), words_attended, regions, locations, regions_attended)
            model.compute_token_logits(output.token_states.flatten(0, 1))
            model.region_head(output.region_states.flatten(0, 1))
            logits.append(model.alignment_head(output.pooled_text, output.pooled_vision))
    return torch.cat(logits)
