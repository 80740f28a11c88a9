"""Loads the user's own code and calls the function in it that makes a network; its errors become one line."""

import hashlib
import inspect
import os
import site
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

import mnist_ray
from mnist_ray.config.own_code import Code, code_of
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.errors import ConfigError, MnistRayError, RunFailedError
from mnist_ray.models.ranks import LostRankError
from mnist_ray.noise.global_generators import seeded_generators
from mnist_ray.noise.random_streams import stream_key
from mnist_ray.text.meanwhile import meanwhile
from mnist_ray.text.suggestions import did_you_mean

_MAX_TEXT = 300


def own_network(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Returns the untrained network of the user's own function.

    Its weights depend on the seed alone: the global generators of torch, numpy and Python are seeded for the call.

    Raises:
      ConfigError: the code is not given or raises an error, has no such function, or the function makes no network or
        doesn't take the settings.
      CheckpointError: the given code is another than the config's.
    """
    what = f"model={config.model!r}"
    code = code_of(config, what)
    with errors_of_code(config, ConfigError):
        function = _function(config, code)
        _check_arguments(function, config)
        with seeded_generators(stream_key(config.seed, "initial own network")):
            network = function(image_shape, num_classes, **config.model_settings.arguments())
            if isinstance(network, nn.Module) and any(map(is_lazy, network.parameters())):
                # Lazy layers take their sizes from the first images.
                with torch.no_grad():
                    network.eval()(torch.zeros(2, *image_shape))
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{what}: returned {type(network).__name__}; it must return a torch.nn.Module")
    return network.train()


def _function(config: TrainConfig, code: Code) -> Callable[..., Any]:
    place, _, name = config.model.rpartition(":")
    module = _module(code, code.module_of(place) or place, str(config.code_sha256))
    # What the code only imports, from Python's own modules for instance, is not for a storage's config to call.
    tops = {module.__name__.partition(".")[0], *_finder.roots}
    own = {
        each: value
        for each, value in vars(module).items()
        if callable(value) and str(getattr(value, "__module__", "")).partition(".")[0] in tops
    }
    if name not in own:
        raise ConfigError(f"model={config.model!r}: {place} defines no function {name}{did_you_mean(name, own)}")
    return cast(Callable[..., Any], own[name])


def _check_arguments(function: Callable[..., Any], config: TrainConfig) -> None:
    """Raises ConfigError for settings that the function doesn't take, or that it needs and doesn't get."""
    signature = inspect.signature(function)
    try:
        signature.bind_partial((1, 28, 28), 10)
    except TypeError:
        raise ConfigError(
            f"model={config.model!r}: {function.__name__}{signature} must take the shape of the images and the number "
            "of classes first: (image_shape, num_classes, ...)"
        ) from None
    parameters = list(signature.parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    # The first two are the shape of the images and the number of classes.
    own = [parameter for parameter in parameters[2:] if parameter.kind is not parameter.VAR_POSITIONAL]
    names = [parameter.name for parameter in own]
    for name, value in config.model_settings.items():
        if name not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            raise ConfigError(
                f"model_settings.{name}={value!r}: {config.model} doesn't take it; {takes}{did_you_mean(name, names)}"
            )
    for parameter in own:
        if parameter.default is parameter.empty and parameter.name not in config.model_settings:
            raise ConfigError(
                f"model_settings.{parameter.name}: a value is needed; {config.model} has no default for it"
            )


class _FromSource(SourceFileLoader):
    """Compiles a module anew: a cached one may be of an edit before, and a cache would stay in the user's folder."""

    def path_stats(self, path: Any) -> Any:
        """Says that nothing is known of a file's age; see importlib.abc.SourceLoader."""
        raise OSError(path)


class _Finder(MetaPathFinder):
    """Finds the modules of the active folder alone, never what lies beside it.

    Attributes:
      active: path and SHA-256 of the folder whose modules are in sys.modules; another's may have the same names.
      roots: the folder of each of its top-level modules.
      files: its files; a link among them, for instance, is none.
    """

    active: tuple[Path, str] | None = None
    roots: dict[str, Path] = {}  # noqa: RUF012 - replaced as a whole
    files: frozenset[Path] = frozenset()

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        del target
        top, _, _ = name.partition(".")
        if top not in self.roots:
            return None
        for folder in (str(self.roots[top]),) if path is None else path:
            spec = FileFinder(folder, (_FromSource, [".py"])).find_spec(name)
            if spec and (spec.origin is None or Path(spec.origin) in self.files):
                return spec
        return None


def _module(code: Code, name: str, sha256: str) -> ModuleType:
    if code.package is not None:
        return import_module(name)
    if code.path.is_dir():
        _activate(code, sha256)
        return import_module(name)
    # Under a name of its own, a file may be called as any other module.
    unique = f"own_{hashlib.sha256(f'{code.path}/{sha256}'.encode()).hexdigest()}"
    if unique not in sys.modules:
        spec = spec_from_file_location(unique, code.path, loader=_FromSource(unique, str(code.path)))
        assert spec is not None
        assert spec.loader is not None
        before = set(sys.modules)
        sys.modules[unique] = module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            _check_imports(code, set(sys.modules) - before - {unique})
        except BaseException:
            del sys.modules[unique]
            raise
    return sys.modules[unique]


def _check_imports(code: Code, names: Iterable[str]) -> None:
    """Refuses modules that a file imported from its own folder: they are no part of its hash."""
    libraries = [Path(mnist_ray.__file__).parent, *map(Path, (*site.getsitepackages(), sys.prefix))]
    for name in sorted(names):
        place = Path(str(getattr(sys.modules[name], "__file__", None) or os.devnull))
        if place.is_relative_to(code.path.parent) and not any(map(place.is_relative_to, libraries)):
            del sys.modules[name]
            raise ConfigError(
                f"--code {str(code.path)!r}: imports {place.name}, which lies beside it: give the folder, --code "
                f"{code.path.parent}"
            )


_finder = _Finder()
# The modules of each folder that was active, by name.
_loaded: dict[tuple[Path, str], dict[str, ModuleType]] = {}


def _activate(code: Code, sha256: str) -> None:
    """Puts a folder's modules into sys.modules, in place of those of the folder before."""
    if _finder.active == (code.path, sha256):
        return
    if _finder.active is not None:
        names = [name for name in sys.modules if name.partition(".")[0] in _finder.roots]
        _loaded[_finder.active] = {name: sys.modules.pop(name) for name in names}
    _finder.active, _finder.roots = None, {}
    tops = {name.partition(".")[0] for name in code.modules}
    _check_names(code, tops)
    _finder.roots = dict.fromkeys(tops, code.path.parent if code.is_package else code.path)
    _finder.files = frozenset(code.files.values())
    _finder.active = (code.path, sha256)
    sys.modules.update(_loaded.get(_finder.active, {}))
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _check_names(code: Code, tops: set[str]) -> None:
    for name in sorted(tops):
        if name in sys.stdlib_module_names or name in sys.modules:
            other = getattr(sys.modules.get(name), "__file__", None) or "Python's own"
            raise ConfigError(f"--code {str(code.path)!r}: {name} is also another module's name ({other}); rename it")


@contextmanager
def errors_of_code(config: TrainConfig, kind: type[MnistRayError], what: str | None = None) -> Iterator[None]:
    """Turns an error of the user's own code into one line with the file and line where it arose.

    Args:
      kind: the error that is raised, with the user's traceback as its `trace`.
      what: what failed, as the line begins; the network by default.
    """
    try:
        # Standard output is for a command's results.
        with redirect_stdout(meanwhile()) if config.is_own_network else nullcontext():
            yield
    except (MnistRayError, LostRankError):
        raise
    except (Exception, SystemExit) as error:
        if not config.is_own_network:
            raise
        code = code_of(config, f"model={config.model!r}")
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_in(frame.filename, code)]
        if not frames and issubclass(kind, RunFailedError):
            # The network has passed the checks at the start, so this is not its error.
            raise
        made = kind(f"{what or f'model={config.model!r}'}: {_one_line(error, code, frames or None)}")
        made.trace = "".join(traceback.format_exception(error))
        raise made from error


def _one_line(error: BaseException, code: Code, frames: Sequence[traceback.FrameSummary] | None) -> str:
    # torch's exporter explains itself in many lines.
    text, place = " ".join(str(error).split())[:_MAX_TEXT], ""
    if isinstance(error, SyntaxError) and error.filename and _is_in(error.filename, code):
        text, place = error.msg, f"{Path(error.filename).name}:{error.lineno}: "
    elif frames:
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: "
    if isinstance(error, ModuleNotFoundError) and error.name and code.path.is_file():
        beside = code.path.parent / error.name.partition(".")[0]
        if beside.is_dir() or beside.with_suffix(".py").is_file():
            text += f"; it lies beside {code.path.name}: give the folder, --code {code.path.parent}"
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return f"{place}{type(error).__name__}{text and ': '}{text}{notes}"


def _is_in(name: str, code: Code) -> bool:
    return Path(name) in code.files.values()
