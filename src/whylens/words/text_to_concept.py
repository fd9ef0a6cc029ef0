"""Text-To-Concept: which phrases do the aligned features resemble? The baseline that does not look at the head."""

from __future__ import annotations

from torch.nn.functional import normalize

from whylens.registry import register
from whylens.words.base import Scene, Scored, WordsMethod, whole_bank
from whylens.words.selection import strongest


@register("text_to_concept", kind="words")
class TextToConcept(WordsMethod):
    """Text-To-Concept: phrases ranked by the cosine between aligned features and phrase (Moayeri et al., ICML 2023).

    It says what the features show, whether or not the decision uses it: the same list for every target. No control is
    run, because a ranking that ignores the head cannot be told from its ranking under a random head.

    Args:
        centred: take the mean image and the mean phrase from both sides, which ranks far better. ``False`` is the
            published baseline.
        k: phrases shown, None for the whole bank.
    """

    name = "text_to_concept"

    def __init__(self, *, centred: bool = True, k: int | None = 8) -> None:
        self.centred = centred
        self.k = k

    def score(self, scene: Scene) -> Scored:
        """Cosines (B, T)."""
        tables = scene.tables
        if self.centred:
            scores = scene.presence
        else:
            scores = normalize(tables.aligned(scene.pooled), dim=1) @ normalize(tables.embeddings, dim=1).T
        index, none = whole_bank(scores)[:2] if self.k is None else (strongest(scores, self.k), None)
        return Scored(
            protocol=f"text_to_concept/{'centred' if self.centred else 'raw'}@1",
            scores=scores,
            phrases=index,
            suppressing=index[:, :0] if none is None else none,
            notes=(
                "This ranking looks at the features only: it is the same for every target, and no random-head control "
                "applies to it.",
            ),
        )
