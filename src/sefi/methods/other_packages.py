"""Methods of other packages: what they raise or return in error is an error that names method and package."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.errors import MethodError, SefiError, is_external, join_message
from sefi.core.progress import Progress
from sefi.diffusion.sampling import ConditionedModel
from sefi.identity.file import Identity, IdentityHeader
from sefi.methods.base import SettingsCheck, TrainingOptions, WeightCounts
from sefi.photo.augment import PhotoViews

if TYPE_CHECKING:
    from sefi.methods.base import Method

Result = TypeVar("Result")


class PackagedMethod:
    """A method of another package, as `Method`, whose faults are a `MethodError` that names it and its package.

    A fault is an error that is not of this package, and a result of another type than the protocol's. Interrupts, a
    lack of memory or space and whatever the given progress raises are none, and stay what they are.

    Args:
        name: of the method.
        package: that brings it.
        method: what its entry point gives.
    """

    def __init__(self, name: str, package: str, method: "Method") -> None:
        self.name, self.package, self.method = name, package, method
        self.info, self.presets, self.config_type = method.info, method.presets, method.config_type

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count as the method does."""
        return self.require("count_weights", self.run_member("count_weights", backbone, config), WeightCounts)

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Refuse what the method refuses."""
        self.run_member("check", backbone, config, evaluators)

    def check_settings(self, config: Config) -> None:
        """Refuse what the method refuses before a model is open, if it asks then."""
        if isinstance(self.method, SettingsCheck):
            self.run_member("check_settings", config)

    def learn(
        self,
        name: str,
        views: PhotoViews,
        backbone: Backbone,
        config: Config,
        seed: int,
        options: TrainingOptions,
    ) -> Identity:
        """Learn as the method does."""
        progress = WatchedProgress(options.progress)
        options = replace(options, progress=progress)
        learned = self.run_member("learn", name, views, backbone, config, seed, options, progress=progress)
        identity = self.require("learn", learned, Identity)
        # Neither dataclasses nor type hints look at what they are given.
        header, tensors = cast("tuple[object, object]", (identity.header, identity.tensors))
        if not isinstance(header, IdentityHeader):
            raise self.make_result_error("learn", "an Identity whose header is no IdentityHeader")
        listed = list(cast("dict[object, object]", tensors).values()) if isinstance(tensors, dict) else []
        if not listed or not all(isinstance(one, Tensor) for one in listed):
            raise self.make_result_error("learn", "an Identity whose tensors are no dict of names and tensors")
        return identity

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """Apply as the method does."""
        return self.require("apply", self.run_member("apply", identities, backbone, strength), ConditionedModel)

    def run_member(self, member: str, *arguments: object, progress: "WatchedProgress | None" = None) -> object:
        """Return what a member of the method returns.

        Raises:
            MethodError: it raised something else than an error of this package, which is the cause, or an error that
                says what is wrong with it.
        """
        try:
            return getattr(self.method, member)(*arguments)
        except MethodError as error:
            if error.problem.startswith(self.title):  # of a call within this one, as scoring applies what is learned
                raise
            raise create_fault_error(self.name, self.package, str(error)) from error
        except SefiError:
            raise
        except Exception as error:
            if is_external(error) or (progress is not None and error is progress.raised):
                raise
            said = join_message(error)
            raise MethodError(
                f"{self.title} raised {type(error).__name__} in `{member}`{said and ': '}{said}.",
                f"If {self.package} is yours, correct it: `sefi --debug ...` prints the trace, and in Python the error"
                " is the cause of this one; if not, report it to its authors.",
            ) from error

    @property
    def title(self) -> str:
        """What messages call it."""
        return format_title(self.name, self.package)

    def require(self, member: str, result: object, kind: type[Result]) -> Result:
        """Return a result that is of the protocol's type; `MethodError` for another one."""
        if isinstance(result, kind):
            return result
        found = "None" if result is None else f"an object of the type {type(result).__name__}"
        raise self.make_result_error(member, found, f" in place of {kind.__name__}")

    def make_result_error(self, member: str, found: str, wanted: str = "") -> MethodError:
        """Return the error for a result that cannot be used."""
        return MethodError(
            f"{self.title} returned {found} from `{member}`{wanted}.",
            f"If {self.package} is yours, correct it (docs/add-a-method.md); if not, report it to its authors.",
        )


class WatchedProgress:
    """Pass on how far a computation is, and remember what that raised: it is no fault of the method."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.raised: Exception | None = None

    def start(self, total: int, label: str) -> None:
        """Pass on the start."""
        self.watch("start", total, label)

    def advance(self, **numbers: float) -> None:
        """Pass on a step."""
        self.watch("advance", **numbers)

    def finish(self) -> None:
        """Pass on the end."""
        self.watch("finish")

    def watch(self, member: str, *arguments: Any, **numbers: float) -> None:  # noqa: ANN401  of three members
        """Use a member; remember what it raises."""
        try:
            getattr(self.progress, member)(*arguments, **numbers)
        except Exception as error:
            self.raised = error
            raise


def format_title(name: str, package: str) -> str:
    """Format what messages call a method of another package.

    >>> format_title("mine", "my-package")
    "The method 'mine' of the package 'my-package'"
    """
    return f"The method {name!r} of the package {package!r}"


def create_fault_error(name: str, package: str, fault: str) -> MethodError:
    """Return the error for a method of another package that cannot be used."""
    return MethodError(
        f"{format_title(name, package)} cannot be used. {fault}",
        f"If {package} is yours, correct it and install it again; if not, install a version that fits this sefi, or"
        f" remove it (pip uninstall {package}).",
    )
