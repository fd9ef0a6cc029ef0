"""FaithTrace: does the logit follow the direction that a phrase induces in feature space?"""

from __future__ import annotations

import torch
from torch import Tensor

from whylens.errors import InputError, unknown_name
from whylens.randomness import picture_hash
from whylens.registry import register
from whylens.types import Words
from whylens.words.base import Scene, Scored, WordsMethod, of_pictures, positive_only, whole_bank
from whylens.words.contrast import contrast_presence
from whylens.words.control import DRAWS, MINIMUM_DRAWS, control_notes, null_heads, random_head_control
from whylens.words.directions import DIRECTIONS, Directions, directions
from whylens.words.layers import layer_gradient, phrase_relevance
from whylens.words.question import FUNCTIONS, Question, ask
from whylens.words.reader import READERS, embed_pictures, reader_of
from whylens.words.selection import diverse, strongest
from whylens.words.substitution import Substitution, substitution_of
from whylens.words.tables import LensLike, Tables, tables_of

# Of a direction's procedure, for the protocol's id; 1 where nothing is said.
VERSIONS = {"substitution": 2}
WEIGHTINGS = ("shown", "contrast", "presence", "displacement", "none")


@register("faithtrace", kind="words")
class FaithTrace(WordsMethod):
    """FaithTrace: each phrase scored by the directional derivative of the logit along its direction (arXiv 2605.16877).

    ``score = <grad F, d_t> * weight_t``. The definition is the paper's; directions, weights, control and selection are
    our reconstruction (its code is not public).

    Args:
        direction: how a phrase becomes a direction, see :mod:`whylens.words.directions`. ``"substitution"``
            falls back to ``"reverse-contrast"`` where the lens has no substitutions (see there), or nothing reads the picture
            (``reader``).
        weighting: ``"shown"``: for phrases of exclusive groups how far the picture shows the phrase rather than another of its
            group, in [0, 1], see :mod:`whylens.words.substitution`; for others, and where there are no substitutions,
            ``"contrast"``; ``"contrast"``: the root of max(0, contrast presence), see
            :func:`whylens.words.contrast.contrast_presence`; ``"presence"``: max(0, presence);
            ``"displacement"``: <z - z_mean, d_t> / |d_t|**2, so that the score
            is the first-order part of the logit that lies along the phrase; ``"none"``: the bare derivative, which for
            an affine head and a direction that no picture changes is a statement about the class, and is marked so.
        function: what is differentiated: ``"logit"``, ``"margin"`` (less the best other logit) or
            ``"log-probability"``.
        k: phrases shown on either side, None for the whole bank in order (then negative scores stand at its end).
        diverse: choose greedily on the residual gradient, so that synonyms do not fill the list.
        minimum_carried: phrases whose presence the features carry less well (held-out R2) are left out; not those of exclusive
            groups under ``"shown"``, whose substitution says what the features make of them.
        minimum_presence: leave out phrases of lower presence; None leaves none out.
        control: run the random-head control.
        draws: random heads.
        layer: name of a module of the classifier. The gradient and the pulled-back directions are then taken at its
            output, see :mod:`whylens.words.layers`; needs the pictures, so ``from_features`` refuses it.
        reader: what says what the picture shows, for substitutions: ``"auto"``: the lens's encoder where the lens holds it or
            it ships with the package, which costs one pass of its image tower; ``"encoder"``: the encoder that the lens was
            fitted with, whatever it takes to load it; ``"features"``: the classifier's features, through the aligner, which is
            less faithful (``docs/planted.md``).

    The protocol id names what was used: a fallback says ``reverse-contrast/contrast``.
    """

    name = "faithtrace"

    def __init__(
        self,
        *,
        direction: str = "substitution",
        weighting: str = "shown",
        function: str = "logit",
        k: int | None = 8,
        diverse: bool = True,
        minimum_carried: float = 0.0,
        minimum_presence: float | None = None,
        control: bool = True,
        draws: int = DRAWS,
        layer: str | None = None,
        reader: str = "auto",
    ) -> None:
        self.direction = direction
        self.weighting = weighting
        self.function = function
        self.k = k
        self.diverse = diverse
        self.minimum_carried = minimum_carried
        self.minimum_presence = minimum_presence
        self.control = control
        self.draws = draws
        self.layer = layer
        self.reader = reader

    def validate(self) -> None:
        """Check the settings; raises InputError for one that cannot be used."""
        super().validate()
        for kind, value, accepted in (
            ("direction", self.direction, DIRECTIONS),
            ("weighting", self.weighting, WEIGHTINGS),
            ("function", self.function, FUNCTIONS),
            ("reader", self.reader, READERS),
        ):
            if value not in accepted:
                raise unknown_name(kind, value, accepted)
        if self.draws < MINIMUM_DRAWS:
            raise InputError(
                f"faithtrace: draws must be at least {MINIMUM_DRAWS} for a p-value of 0.05; it is {self.draws}."
            )
        if self.layer is not None and self.direction.startswith("adjoint"):
            raise InputError("faithtrace: with a layer, directions must be of the reverse family, not adjoint.")

    def __call__(
        self,
        lens: LensLike,
        images: Tensor,
        targets: Tensor | None = None,
        *,
        contrasts: Tensor | None = None,
        seed: int = 0,
    ) -> list[Words]:
        """Explain a batch of pictures as every words method does.

        Cost: one forward pass; one of the encoder's image tower where it reads the pictures; a layer adds three backward
        passes down to it.
        """
        if self.layer is None:
            return super().__call__(lens, images, targets, contrasts=contrasts, seed=seed)
        self.validate()
        seen = layer_gradient(lens.classifier, images, self.layer, targets, contrasts, self.function)
        hashes = [picture_hash(picture) for picture in images]
        return self._explain(
            lens,
            seen.features,
            seen.logits,
            targets,
            contrasts,
            hashes,
            seed,
            seen.gradient,
            **of_pictures(self, lens, images),
        )

    def picture_embeddings(self, lens: LensLike, images: Tensor) -> Tensor | None:
        """Embeddings (B, m) of the pictures where these settings and the lens have a use for them, else None.

        Raises:
            InputError: ``reader="encoder"`` for a lens whose encoder cannot be loaded.
        """
        self.validate()
        if not self._substitutes or self.reader == "features" or substitution_of(tables_of(lens)) is None:
            return None
        encoder = reader_of(lens, self.reader)
        return None if encoder is None else embed_pictures(encoder, images)

    def score(self, scene: Scene) -> Scored:
        """Scores (B, T), control, and the phrases to show."""
        if self.layer is not None and scene.layer_gradient is None:
            raise InputError(
                f"faithtrace: the layer {self.layer!r} needs the pictures; call the method itself, "
                "FaithTrace(layer=...)(lens, images, targets)."
            )
        question = self._question(scene)
        substitution = self._substitution(scene.tables, scene.embeddings)
        direction, weighting = self._used(substitution)
        chosen = directions(scene.tables, direction, scene.pooled, scene.embeddings)
        at_layer = scene.layer_gradient
        inner = chosen.along(question.gradient if at_layer is None else at_layer)
        weights = self._weights(scene, chosen, weighting, substitution)
        # Adding zero turns the -0.0 of phrases that are not in play into 0.0.
        scores = weights * inner + 0.0
        control = None
        notes: tuple[str, ...] = ()
        if at_layer is not None:
            notes += (
                f"Scored at the layer {self.layer!r}: the gradient and the directions were pulled back to it. No "
                "random-head "
                "control is run there.",
            )
        elif self.control:
            heads = null_heads(
                scene.classifier, scene.tables, scene.features, scene.logits, question, scene.seed, self.draws
            )
            if heads is not None:
                key = (scene.seed, self.draws)
                control = random_head_control(scene.tables, heads, chosen, weights, table_key=key)
                notes += control_notes(scene.logits.shape[1])
        class_level = (
            scene.classifier.affine_head is not None
            and not chosen.per_picture
            and self.weighting == "none"
            and self.function != "log-probability"
            and at_layer is None
        )
        if class_level:
            notes += (
                "Class level: with an affine head and this direction the scores are the same for every picture of "
                "these "
                "classes. They explain the class, not this picture.",
            )
        phrases, suppressing = self._choose(scores, inner, chosen)
        return Scored(
            protocol=f"faithtrace/{direction}/{weighting}/{self.function}"
            + (f"/layer={self.layer}" if self.layer else "")
            + f"@{VERSIONS.get(direction, 1)}",
            scores=scores,
            phrases=phrases,
            suppressing=suppressing,
            control=control,
            influence=inner,
            class_level=class_level,
            notes=notes,
        )

    def phrase_maps(
        self,
        lens: LensLike,
        images: Tensor,
        phrases: Tensor | list[int],
        targets: Tensor | None = None,
        *,
        contrasts: Tensor | None = None,
    ) -> Tensor:
        """Where in the picture the influence of chosen phrases comes from.

        Args:
            lens: the lens.
            images: (B, 3, H, W) in [0, 1].
            phrases: n indices into the bank, the same for every picture.
            targets: (B,) class indices, the predicted classes by default.
            contrasts: (B,) class indices, or None.

        Returns:
            (B, n, h, w): at every position of the layer (of the features, where no ``layer`` is set and they are
            spatial) the inner product of the gradient and the phrase's direction. The sum over positions is the
            phrase's unweighted score.

        Raises:
            InputError: where features have no positions and no layer is set, or the layer's output is no map.

        Cost: without a layer one forward pass and a backward pass of the head; with one, one forward pass and n + 1
        backward passes down to the layer. Substitutions need one pass more, of the encoder's image tower, or of the
        classifier where no encoder reads the picture.
        """
        self.validate()
        if self.direction.startswith("adjoint"):
            raise InputError("faithtrace: maps exist for directions of the reverse family, not for adjoint ones.")
        tables = tables_of(lens)
        index = torch.as_tensor(phrases, dtype=torch.long, device=tables.embeddings.device)
        if index.ndim != 1 or not len(index) or int(index.min()) < 0 or int(index.max()) >= len(tables.text):
            raise InputError(f"phrases must be indices from 0 to {len(tables.text) - 1}, at least one of them.")
        pooled = torch.zeros(len(images), len(tables.feature_mean), device=index.device)
        embeddings = self.picture_embeddings(lens, images)
        direction, _ = self._used(self._substitution(tables, embeddings))
        if direction == "substitution" and embeddings is None:
            with torch.no_grad():
                pooled = lens.classifier.pooled(images.to(index.device)).float()
        made = directions(tables, direction, pooled, embeddings)
        rows = made.rows[index] @ made.basis.T
        if made.own is not None:
            rows = made.compact(index.expand(len(images), -1))
        return phrase_relevance(
            lens.classifier, images, rows, targets, contrasts, function=self.function, layer=self.layer
        )

    def _question(self, scene: Scene) -> Question:
        if self.function == "logit":
            return scene.question
        q = scene.question
        return ask(scene.classifier, scene.features, scene.logits, q.targets, q.contrasts, self.function)

    @property
    def _substitutes(self) -> bool:
        return self.direction == "substitution" or self.weighting == "shown"

    def _substitution(self, tables: Tables, embeddings: Tensor | None) -> Substitution | None:
        """What these settings use of the lens's substitutions: nothing where nothing says what the pictures show."""
        if not self._substitutes or (embeddings is None and self.reader != "features"):
            return None
        return substitution_of(tables)

    def _used(self, substitution: Substitution | None) -> tuple[str, str]:
        """Direction and weighting that are used."""
        if substitution is not None:
            return self.direction, self.weighting
        direction = "reverse-contrast" if self.direction == "substitution" else self.direction
        return direction, "contrast" if self.weighting == "shown" else self.weighting

    def _weights(self, scene: Scene, chosen: Directions, weighting: str, substitution: Substitution | None) -> Tensor:
        if weighting in ("contrast", "shown"):
            # The root decides between values that are there and values that are not, and leaves the rest to the influence.
            weights = contrast_presence(scene.tables, scene.pooled).clamp(min=0).sqrt()
        elif weighting == "presence":
            weights = scene.presence.clamp(min=0)
        elif weighting == "displacement":
            norms = chosen.squared_norms()
            along = chosen.along(scene.pooled - scene.tables.feature_mean)
            weights = torch.where(norms > 0, along / norms.clamp(min=1e-30), 0.0)
        else:
            weights = torch.ones_like(scene.presence)
        gate = (scene.tables.carried > self.minimum_carried).expand_as(weights)
        if weighting == "shown" and substitution is not None:
            seen = scene.tables.aligned(scene.pooled) if scene.embeddings is None else scene.embeddings
            weights[:, substitution.index] = substitution.shown(substitution.softmax(seen))
            gate = gate.clone()
            gate[:, substitution.index] = True
        if self.minimum_presence is not None:
            gate = gate & (scene.presence >= self.minimum_presence)
        return torch.where(gate, weights, 0.0)

    def _choose(self, scores: Tensor, inner: Tensor, chosen: Directions) -> tuple[Tensor, Tensor]:
        if self.k is None:
            return whole_bank(scores)
        if self.diverse:
            return diverse(scores, inner, chosen, self.k), diverse(-scores, -inner, chosen, self.k)
        return positive_only(strongest(scores, self.k), scores), positive_only(strongest(-scores, self.k), -scores)
