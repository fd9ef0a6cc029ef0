from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from whylens.alignment.moments import Moments
from whylens.classifiers import Classifier
from whylens.encoders import Encoder
from whylens.errors import FitError, InputError
from whylens.images import read_picture
from whylens.lens.reference import PairedPass, held_out_flags, reference_flags, run_paired_pass
from whylens.words import estimate_spectrum


def run(classifier: Classifier, encoder: Encoder, pictures: list[Path], **changes: object) -> PairedPass:
    options: dict[str, object] = {"batch_size": 16, "held_out": 0.2, "seed": 0, "checkpoint": None, "progress": None}
    return run_paired_pass(classifier, encoder, pictures, **(options | changes))  # type: ignore[arg-type]


def test_moments_and_held_out_pairs_are_those_of_a_plain_loop(
    classifier: Classifier, encoder: Encoder, pictures: list[Path]
) -> None:
    result = run(classifier, encoder, pictures)
    flags = held_out_flags([str(p) for p in pictures], 0.2, 0)
    features, embeddings = [], []
    with torch.no_grad():
        for path in pictures:
            picture = read_picture(path)
            features.append(classifier.pooled(classifier.preprocess(picture)[None])[0].double())
            embeddings.append(encoder.encode_images(encoder.preprocess(picture)[None])[0].double())
    f, g = torch.stack(features), torch.stack(embeddings)
    held = torch.tensor(flags)
    assert held.sum() == len(result.features) == 30
    torch.testing.assert_close(result.features.double(), f[held], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.embeddings.double(), g[held], rtol=1e-4, atol=1e-5)
    covariance, cross, _ = result.moments.covariances()
    centred_f, centred_g = f[~held] - f[~held].mean(0), g[~held] - g[~held].mean(0)
    torch.testing.assert_close(covariance, centred_f.T @ centred_f / 120, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cross, centred_f.T @ centred_g / 120, rtol=1e-4, atol=1e-6)
    whole = estimate_spectrum(torch.stack([classifier.preprocess(read_picture(path)) for path in pictures]))
    torch.testing.assert_close(result.spectrum, whole, rtol=1e-4, atol=1e-5)


def test_the_held_out_part_does_not_depend_on_the_order() -> None:
    names = [f"picture-{i}" for i in range(500)]
    flags = dict(zip(names, held_out_flags(names, 0.1, 7), strict=True))
    reverse = dict(zip(names[::-1], held_out_flags(names[::-1], 0.1, 7), strict=True))
    assert flags == reverse
    assert sum(flags.values()) == 50
    assert flags != dict(zip(names, held_out_flags(names, 0.1, 8), strict=True))
    assert sum(held_out_flags(names[:30], 0.1, 0)) == 15
    assert sum(held_out_flags([str(i) for i in range(60_000)], 0.1, 0)) == 5000


@pytest.mark.parametrize("save_every", [32, 2000])
def test_an_interrupted_pass_goes_on_and_gives_the_same(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], tmp_path: Path, save_every: int
) -> None:
    def stop_at_half(done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    whole = run(classifier, encoder, pictures)
    checkpoint = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        run(classifier, encoder, pictures, checkpoint=checkpoint, progress=stop_at_half, save_every=save_every)
    assert checkpoint.is_dir()
    seen: list[int] = []
    resumed = run(
        classifier,
        encoder,
        pictures,
        checkpoint=checkpoint,
        progress=lambda done, total: seen.append(done),
    )
    assert seen[0] > len(pictures) // 2
    assert resumed.used == whole.used == len(pictures)
    torch.testing.assert_close(resumed.features, whole.features)
    torch.testing.assert_close(resumed.spectrum, whole.spectrum)
    for a, b in zip(resumed.moments.covariances(), whole.moments.covariances(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_pairs_that_the_lens_keeps_include_the_held_out_ones(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whylens.lens.reference.MAX_REFERENCES", 50)
    result = run(classifier, encoder, pictures)
    names = [str(p) for p in pictures]
    kept, held = torch.tensor(reference_flags(names, 0)), torch.tensor(held_out_flags(names, 0.2, 0))
    assert int(kept.sum()) == 50 == len(result.reference_features)
    assert bool((kept | ~held).all())
    every = run(classifier, encoder, pictures, held_out=0.5)
    both = held[kept]
    torch.testing.assert_close(result.reference_features[both], result.features)
    torch.testing.assert_close(result.reference_embeddings[both], result.embeddings, rtol=1e-3, atol=1e-3)
    # A larger held-out part does not choose other pictures.
    torch.testing.assert_close(every.reference_features, result.reference_features)

    def stop_at_half(done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(classifier, encoder, pictures, checkpoint=tmp_path / "half", progress=stop_at_half, save_every=16)
    resumed = run(classifier, encoder, pictures, checkpoint=tmp_path / "half")
    torch.testing.assert_close(resumed.reference_features, result.reference_features)
    torch.testing.assert_close(resumed.reference_embeddings, result.reference_embeddings)


def test_an_interruption_in_the_middle_of_an_update_keeps_the_last_whole_state(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(classifier, encoder, pictures)
    update, calls = Moments.update, []

    def half_an_update(self: Moments, *arguments: torch.Tensor) -> None:
        update(self, *arguments)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "unfinished"
    monkeypatch.setattr(Moments, "update", half_an_update)
    with pytest.raises(KeyboardInterrupt):
        run(classifier, encoder, pictures, checkpoint=checkpoint, save_every=48)
    monkeypatch.undo()
    resumed = run(classifier, encoder, pictures, checkpoint=checkpoint)
    assert resumed.used == whole.used
    for a, b in zip(resumed.moments.covariances(), whole.moments.covariances(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_checkpoint_of_another_configuration_is_refused(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "unfinished"
    with pytest.raises(ZeroDivisionError):
        run(classifier, encoder, pictures, checkpoint=checkpoint, save_every=16, progress=lambda d, t: 1 / (d < 64))
    with pytest.raises(InputError, match="another configuration"):
        run(classifier, encoder, pictures, checkpoint=checkpoint, seed=1)
    (checkpoint / "state.json").write_text("{")
    with pytest.raises(InputError, match="no readable fitting checkpoint"):
        run(classifier, encoder, pictures, checkpoint=checkpoint)


def test_unreadable_pictures_are_listed_and_passed_over(
    classifier: Classifier, encoder: Encoder, pictures: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(pictures[0].read_bytes()[:60])
    result = run(classifier, encoder, [bad, *pictures, truncated])
    assert result.used == len(pictures)
    assert [Path(name).name for name, _ in result.failed] == ["bad.png", "truncated.png"]
    with pytest.raises(FitError, match="could not be read"):
        run(classifier, encoder, [bad, truncated])


def test_batch_size_does_not_change_the_pairs(classifier: Classifier, encoder: Encoder, pictures: list[Path]) -> None:
    one, many = (
        run(classifier, encoder, pictures[:40], batch_size=1),
        run(classifier, encoder, pictures[:40], batch_size=13),
    )
    np.testing.assert_allclose(one.features, many.features, atol=1e-5)
    np.testing.assert_allclose(one.embeddings, many.embeddings, atol=1e-5)
