"""The code of the user's own networks: what was given on the command line, and its SHA-256; never imports or runs it.

A network is named FILE.py:FUNCTION or package.module:FUNCTION. Its code is a file, a folder or an installed package. A
config holds the name, relative to the code, and the code's SHA-256, so where the code lies doesn't matter. Only code
that the user gives on the command line is ever run: a config in a storage can name any function.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import mnist_ray
from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import CheckpointError, ConfigError
from mnist_ray.text.suggestions import did_you_mean

# A JSON list: absolute paths, paths relative to the folder of mnist_ray/ (in a cluster's job), names of packages. Read
# and written here alone; the workers of a local Ray inherit it, a job gets it in its environment.
CODE_VARIABLE = "MNIST_RAY_CODE"
SHIPPED = "code"


@dataclass(frozen=True)
class Code:
    """Given code.

    Attributes:
      path: absolute path of a file NAME.py, or of a folder, perhaps a package.
      package: name of the package, or of the single module, if it is an installed one.
    """

    path: Path
    package: str | None = None

    @property
    def is_package(self) -> bool:
        """Whether the folder itself is a package, so that the names of its modules begin with its own name."""
        return self.package is not None or (self.path / "__init__.py").is_file()

    @cached_property
    def files(self) -> dict[str, Path]:
        """The *.py files by their name relative to the code, such as nets/wide.py."""
        if self.path.is_file():
            return {self.path.name: self.path}
        environments = [path.parent for path in self.path.rglob("pyvenv.cfg")]
        paths = {
            path.relative_to(self.path): path
            for path in sorted(self.path.rglob("*.py"))
            if not any(path.is_relative_to(environment) for environment in environments)
        }
        # A link could point anywhere.
        return {
            name.as_posix(): path
            for name, path in paths.items()
            if path.is_file() and not path.is_symlink() and not any(part.startswith(".") for part in name.parts)
        }

    @property
    def modules(self) -> dict[str, str]:
        """Name of a module -> its file, as in `files`."""
        prefix = (self.package or self.path.name,) if self.is_package and self.path.is_dir() else ()
        named = {".".join((*prefix, *PurePosixPath(file).with_suffix("").parts)): file for file in self.files}
        return {name.removesuffix(".__init__"): file for name, file in named.items()}

    def module_of(self, place: str) -> str | None:
        """Returns the module that a config's name means, FILE.py or package.module; None if the code has none."""
        return next((name for name, file in self.modules.items() if place in (name, file)), None)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of a file's content, or of the names and contents of a folder's *.py files."""
        if self.path.is_file():
            return hashlib.sha256(_content(self.path)).hexdigest()
        lines = [f"{name}\0{hashlib.sha256(_content(path)).hexdigest()}\n" for name, path in self.files.items()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--code {str(path)!r}: can't be read: {error.strerror}") from None


def given_code() -> list[Code]:
    """Returns the code that was given on this command line, or shipped with this job."""
    here = Path(mnist_ray.__file__).parent.parent
    entries = json.loads(os.environ.get(CODE_VARIABLE, "[]"))
    return [code_at(entry if entry.isidentifier() else str(here / entry)) for entry in entries]


@contextmanager
def giving(options: Sequence[str]) -> Iterator[None]:
    """Gives code, the values of --code, for the time of a command, also to the processes that it starts.

    Raises:
      ConfigError: a value is neither a *.py file, nor a folder with some, nor an installed package.
    """
    before = os.environ.get(CODE_VARIABLE)
    try:
        for option in options:
            _give(code_at(option))
        yield
    finally:
        os.environ.pop(CODE_VARIABLE, None)
        if before is not None:
            os.environ[CODE_VARIABLE] = before


def _give(code: Code) -> None:
    entries = json.loads(os.environ.get(CODE_VARIABLE, "[]"))
    entry = code.package or str(code.path)
    if entry not in entries:
        os.environ[CODE_VARIABLE] = json.dumps([*entries, entry])


def code_at(option: str) -> Code:
    """Returns the code that a value of --code names.

    Raises:
      ConfigError: there is none.
    """
    # Not resolved: a link's own name is the one that the user gave.
    path = Path(os.path.abspath(os.path.expanduser(option)))
    if path.is_file():
        if path.suffix != ".py" or "." in path.stem:
            raise ConfigError(f"--code {option!r}: not Python code; its name must end in .py and have no other dot")
        return Code(path)
    if path.is_dir():
        code = Code(path)
        if not code.files:
            raise ConfigError(f"--code {option!r}: holds no *.py file")
        return code
    if option.isidentifier() and (installed := _installed(option)):
        return installed
    raise ConfigError(f"--code {option!r}: no such file or folder, and no installed package of that name")


# An installed package may be large, and stays as it is; all other code is read anew each time.
@lru_cache
def _installed(package: str) -> Code | None:
    """Returns an installed package or module, without importing it; None if there is none with Python code."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    # A namespace package has no file of its own.
    folder = next(iter(spec.submodule_search_locations or ()), None)
    path = Path(folder or spec.origin or "")
    return Code(path, package) if path.is_dir() or (path.suffix == ".py" and path.is_file()) else None


def use_model(model: str) -> str:
    """Returns a value of the setting `model` as configs hold it, and gives the code of the user's own network.

    Args:
      model: a built-in network's name; or FILE.py:FUNCTION, the file's path or its name in given code; or
        package.module:FUNCTION of given code or of an installed package.

    Raises:
      ConfigError: there is no such file or module.
    """
    place, separator, function = model.rpartition(":")
    if not separator:
        return model
    if not place or not function.isidentifier():
        raise ConfigError(f"model={model!r}: write it as FILE.py:FUNCTION or package.module:FUNCTION")
    path = Path(os.path.abspath(os.path.expanduser(place)))
    codes = given_code()
    for code in codes:
        for name, file in code.files.items():
            if place.endswith(".py") and path == file:
                return f"{name}:{function}"
    having = [code for code in codes if code.module_of(place)]
    if len(having) > 1:
        paths = " and ".join(str(code.path) for code in having)
        raise ConfigError(f"model={model!r}: {paths} both have it; give one of them with --code")
    if having:
        return model
    if place.endswith(".py"):
        if not path.is_file():
            raise ConfigError(f"model={model!r}: no such file: {path}{_nearest(place, codes)}")
        _give(code_at(str(path)))
        return f"{path.name}:{function}"
    installed = _installed(place.partition(".")[0])
    if installed is None:
        raise ConfigError(
            f"model={model!r}: no module {place} in given code, and none is installed; give its file or folder with "
            f"--code, or name it as FILE.py:FUNCTION{_nearest(place, codes)}"
        )
    if installed.module_of(place) is None:
        raise ConfigError(f"model={model!r}: {installed.path} has no module {place}{_nearest(place, [installed])}")
    _give(installed)
    return model


def _nearest(place: str, codes: Sequence[Code]) -> str:
    return did_you_mean(place, [name for code in codes for pair in code.modules.items() for name in pair])


def with_code_hash(config: TrainConfig) -> TrainConfig:
    """Returns a config that the user made, with the SHA-256 of its network's code.

    Raises:
      ConfigError: the code is not given.
      CheckpointError: the config names another SHA-256.
    """
    what = f"model={config.model!r}"
    if config.is_own_network and config.code_sha256 is None:
        return config.model_copy(update={"code_sha256": _having(config, what)[0].sha256})
    check_code(config, what)
    return config


def check_code(config: TrainConfig, what: str) -> None:
    """Checks that the code of a config's network is given, if it is the user's own.

    Args:
      what: whose network it is, for messages: "run 'a'".

    Raises:
      ConfigError: its code is not given.
      CheckpointError: the given code is another than the config's.
    """
    if config.is_own_network:
        code_of(config, what)


def code_of(config: TrainConfig, what: str) -> Code:
    """Returns the given code of a config's own network, whose content is what the config says; see check_code."""
    having = {code.sha256: code for code in _having(config, what)}
    if config.code_sha256 not in having:
        now = " and ".join(f"{sha256[:12]} of {code.path.name}" for sha256, code in having.items())
        raise CheckpointError(
            f"{what}: the code of its own network {config.model} has changed, or was another file or folder (SHA-256 "
            f"{str(config.code_sha256)[:12]} then, {now} now); give it as it was with --code"
        )
    return having[config.code_sha256]


def _having(config: TrainConfig, what: str) -> list[Code]:
    """Returns the given code that a config's network may be in: whole, or a folder's file alone."""
    place = config.model.rpartition(":")[0]
    having = [code for code in given_code() if code.module_of(place)]
    if not having:
        given = ", ".join(code.package or code.path.name for code in given_code())
        lack = f"not in {given}" if given else "needed"
        kind = "FILE or FOLDER" if place.endswith(".py") else "FOLDER or PACKAGE"
        raise ConfigError(f"{what}: the code of its own network {config.model} is {lack}; give it with --code {kind}")
    return [*having, *(Code(code.files[place]) for code in having if place in code.files and "/" not in place)]


def shipped(codes: Sequence[Code]) -> tuple[dict[str, Path], Mapping[str, str]]:
    """Returns what a job on a cluster needs of given code.

    Returns:
      The files by their place in the job's working folder, and the job's environment variable. An installed package is
      not shipped: the nodes must have it too, and its SHA-256 is checked there.
    """
    files: dict[str, Path] = {}
    entries = []
    for number, code in enumerate(codes):
        place = f"{SHIPPED}/{number}/{code.path.name}"
        entries.append(code.package or place)
        if code.package is None:
            folder = place if code.path.is_dir() else f"{SHIPPED}/{number}"
            files |= {f"{folder}/{name}": path for name, path in code.files.items()}
    return files, {CODE_VARIABLE: json.dumps(entries)} if entries else {}
