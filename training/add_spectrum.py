"""Add what a built-in lens was fitted without to its file: the pictures' magnitude spectrum, embeddings of class names.

    python training/add_spectrum.py --data FOLDER [--name tiny-imagenet] [--pictures 10000]

`whylens.fit` stores both; this leaves every other tensor as it is.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from pictures import read_class_pictures
from safetensors.torch import load_file, save_file

from whylens import Lens
from whylens.lens.storage import BUILT_IN
from whylens.words.class_names import readable_class_names
from whylens.words.spectrum import SpectrumMean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", default="tiny-imagenet")
    parser.add_argument("--pictures", type=int, default=10000)
    options = parser.parse_args()
    lens = Lens.load(options.name)
    running = SpectrumMean(lens.classifier.size)
    for tar in sorted(options.data.glob("train*.tar")):
        array, _ = read_class_pictures([tar])
        for part in torch.from_numpy(array[: options.pictures - running.count]).split(500):
            running.update(part.permute(0, 3, 1, 2).float() / 255)
        if running.count >= options.pictures:
            break
    names = readable_class_names(lens.load_encoder(), lens.classifier.class_names, lens.encoder.templates)
    file = BUILT_IN / options.name / "lens.safetensors"
    tensors = load_file(file) | {"spectrum": running.spectrum().half()}
    if names is not None:
        tensors["class_embeddings"] = names.half()
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / file.name)
        shutil.copyfile(Path(folder) / file.name, file)
    known = 0 if names is None else int(torch.isfinite(names).all(1).sum())
    print(f"{file}: spectrum of {running.count} pictures, {known} of {len(lens.classifier.class_names)} class names")


if __name__ == "__main__":
    main()
