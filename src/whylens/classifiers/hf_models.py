"""``hf:REPOSITORY_OR_FOLDER``: image classifiers of transformers, with the settings of their own image processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whylens.classifiers.architectures import wrap
from whylens.classifiers.classifier import Classifier
from whylens.classifiers.preprocessing import Preprocessing, from_hf, from_timm
from whylens.classifiers.sources import Options, register_source
from whylens.errors import InputError, ModelError, missing_extra


@register_source("hf")
def load_hf(name: str, options: Options) -> Classifier:
    """A transformers image classifier, from the hub or a folder; code from the hub is never run."""
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "hf", "A classifier of Hugging Face") from None
    path = Path(name).expanduser()
    local = path.is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(
            f"There is no folder {name!r}. Give a folder with config.json, or a repository such as 'OWNER/NAME'."
        )
    if local and not (path / "config.json").is_file():
        raise InputError(f"The folder {name!r} has no config.json, so it is no Hugging Face model.")
    where = str(path) if local else name
    try:
        config = transformers.AutoConfig.from_pretrained(where, local_files_only=local)
        if options.pretrained:
            module, info = transformers.AutoModelForImageClassification.from_pretrained(
                where, config=config, local_files_only=local, output_loading_info=True
            )
        else:
            module, info = transformers.AutoModelForImageClassification.from_config(config), {}
    except Exception as error:
        raise ModelError(f"hf:{name} could not be loaded as an image classifier: {error}") from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"The checkpoint of hf:{name} lacks {len(missing)} weights of an image classifier ({', '.join(missing[:4])}), "
            "so its logits would be random. It is probably a backbone; choose a fine-tuned model."
        )
    # Half-precision checkpoints are explained in fp32, which holds the same values.
    module = module.float()
    preprocessing = _preprocessing(transformers, where, config, local=local)
    return wrap(
        module,
        preprocessing,
        lambda classes: _names(config, classes),
        options,
        f"hf:{name}",
        remakeable=options.pretrained,
    )


def _preprocessing(transformers: Any, where: str, config: Any, *, local: bool) -> Preprocessing:
    side = _image_size(config)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(where, local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0][:160]
        return Preprocessing(
            size=(side, side),
            resize=(side, side),
            note="No image processor file; size from the model's configuration, ImageNet mean and std assumed. "
            f"({reason})",
        )
    settings: Mapping[str, Any] = processor.to_dict()
    data_config = getattr(processor, "data_config", None)
    if data_config:
        return from_timm(data_config)
    return from_hf(settings, side)


def _image_size(config: Any) -> int:
    size = getattr(config, "image_size", None)
    if isinstance(size, (list, tuple)) and size:
        size = size[0]
    return int(size) if isinstance(size, int) and size > 0 else 224


def _names(config: Any, classes: int) -> Sequence[str] | None:
    table = getattr(config, "id2label", None) or {}
    by_index = {int(key): str(value) for key, value in table.items()}
    if sorted(by_index) != list(range(classes)):
        return None
    return [by_index[i] for i in range(classes)]
