"""Identities and results on the Hugging Face hub: repositories with the files and a card that says what they are."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.hf_api import ModelInfo

from sefi.core.errors import IdentityError, OutputError, SefiError
from sefi.core.reading import describe_fault
from sefi.core.text import dump_json

FILE = "identity.safetensors"  # of every repository of an identity
PATTERNS = ["identity*.safetensors"]  # with its further files
BASE_MODELS = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
NOT_CACHED = "The identity {} is not in the local cache, and allow_download=True was not given"
HUB_REMEDY = "Check the repository's name, your connection and your login (`hf auth login`)."
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A **{{ class_word }}** as {{ stages }} x 2 small vectors for a text-to-image model, learned with the method `{{ method }}` of sefi. Whoever has this file can generate images of that {{ class_word }}.

## Consent

{{ consent }}

## Use

```python
import sefi

backbone = sefi.open_backbone(MODEL)  # {{ base_model }}, or another checkpoint of its family
{{ variable }} = sefi.Identity.from_pretrained("{{ repository }}", allow_download=True)
sefi.generate("a photo of <{{ name }}> at the beach", [{{ variable }}], backbone=backbone)
```

## Scores

{{ scores }}

## Settings

```json
{{ settings }}
```
"""  # noqa: E501


def make_card(header: Mapping[str, Any], repository: str) -> str:
    """Make the README of an identity's repository: consent, use, scores and settings.

    Args:
        header: what the identity says about itself, as plain values.
        repository: `owner/name`.
    """
    family = str(header["base_model"]).partition(":")[0]
    data = ModelCardData(
        base_model=BASE_MODELS.get(family),
        library_name="sefi",
        pipeline_tag="text-to-image",
        tags=["sefi", "textual-inversion", "personalisation"],
    )
    name = str(header["name"])
    scores = [f"- {score}: {value:.3g}" for score, value in header["metrics"].items()]
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=name,
        name=name,
        variable=name if name.isidentifier() else "identity",
        class_word=header["class_word"],
        stages=header["stages"],
        method=header["method"],
        base_model=header["base_model"],
        repository=repository,
        consent=header["consent"] or "Nothing is stated. Do not use a likeness without the person's consent.",
        scores="\n".join(scores) or "None were measured.",
        settings=dump_json(header["settings"], indent=2),
    )
    return str(card)


def upload_folder(folder: Path, repository: str, *, private: bool, token: str | None = None) -> str:
    """Upload an identity's files and card, in one commit, to a repository that is created if need be.

    Args:
        folder: holds `FILE`, its further files and the card as README.md.
        private: of a new repository; an existing one stays as public or private as it is.
        token: of the hub; None takes the one that you are logged in with.

    Returns:
        The commit's address.

    Raises:
        IdentityError: there is no connection, no login or no right to write there, or the repository is public and
            `private` was wanted.
    """
    return upload_files(folder, repository, IDENTITY, private=private, token=token)


@dataclass(frozen=True)
class Upload:
    """A kind of upload.

    Attributes:
        repo_type: what the hub calls such a repository.
        message: of the commit.
        error: what is raised where it fails.
        publish: how a user says that everybody may see it.
    """

    repo_type: str
    message: str
    error: type[SefiError]
    publish: str


IDENTITY = Upload("model", "Upload an identity", IdentityError, "publish it with private=False")
DATASET = Upload("dataset", "Upload the results of a benchmark", OutputError, "add --public")


def upload_files(
    folder: Path,
    repository: str,
    upload: Upload,
    *,
    private: bool,
    names: list[str] | None = None,
    token: str | None = None,
) -> str:
    """Upload a folder in one commit to a repository that is created if need be; return the commit's address.

    Args:
        names: of the files; None uploads all of them.
        private, token: as in `upload_folder`.

    Raises:
        SefiError: of the upload's kind, as in `upload_folder`.
    """
    api, kind = HfApi(token=token), upload.repo_type
    problem = f"{repository} could not be written"
    with translate_hub_errors(problem, upload.error):
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        is_public = not api.repo_info(repository, repo_type=kind).private
    if private and is_public:
        raise upload.error(f"The repository {repository} is public.", f"Choose another name, or {upload.publish}.")
    with translate_hub_errors(problem, upload.error):
        commit = api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=names,
            commit_message=upload.message,
        )
    return str(commit)


def make_dataset_card(title: str, text: str) -> str:
    """Make the README of a data set of results: its YAML header and a text.

    Args:
        title: one line.
        text: Markdown that follows the title.
    """
    configs = [{"config_name": "samples", "data_files": "samples.jsonl"}]
    tags = ["sefi", "benchmark", "text-to-image", "personalisation"]
    data = DatasetCardData(pretty_name=title, tags=tags, configs=configs)
    return f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}"


def upload_dataset(folder: Path, names: list[str], repository: str, *, private: bool) -> str:
    """Upload files to a data set's repository, which is created if need be; return the commit's address.

    Args:
        folder: holds the card as README.md.
        names: of the files; nothing else in the folder is uploaded.
        private: of a new repository; an existing one stays as public or private as it is.

    Raises:
        OutputError: there is no connection, no login or no right to write there, or the repository is public and
            `private` was wanted.
    """
    return upload_files(folder, repository, DATASET, private=private, names=names)


@contextmanager
def translate_hub_errors(problem: str, kind: type[SefiError] = IdentityError) -> Generator[None]:
    """Raise one typed error for whatever goes wrong with the hub, its client's own errors too."""
    try:
        yield
    except Exception as error:
        raise kind(f"{problem}: {describe_fault(error)}.", HUB_REMEDY) from error


def download_folder(repository: str, largest: int, *, allow_download: bool, token: str | None = None) -> Path:
    """Return the folder with the files of an identity's repository.

    Args:
        largest: bytes that its files may have together.
        allow_download: whether the network may be used; without it only the local cache is read.

    Raises:
        IdentityError: it is not there, or larger.
    """
    if allow_download:
        with translate_hub_errors(f"The identity {repository} could not be downloaded"):
            info = HfApi(token=token).model_info(repository, files_metadata=True)
        check_sizes(info, repository, largest)
    problem = f"The identity {repository} could not be downloaded" if allow_download else NOT_CACHED.format(repository)
    with translate_hub_errors(problem):
        folder = snapshot_download(
            repository, allow_patterns=PATTERNS, local_files_only=not allow_download, token=token
        )
    if not (Path(folder) / FILE).is_file():
        raise IdentityError(f"The repository {repository} holds no {FILE}.", "Name one that `push_to_hub` made.")
    return Path(folder)


def check_sizes(info: ModelInfo, repository: str, largest: int) -> None:
    """Refuse a repository whose identity files are larger together than `largest` bytes, before any is fetched.

    Raises:
        IdentityError: they are.
    """
    named = [file for file in info.siblings or () if file.rfilename.startswith("identity")]
    size = sum(file.size or 0 for file in named)
    if size > largest:
        raise IdentityError(
            f"The files of {repository} have {size:,} bytes, more than the {largest:,} of an identity.",
            "Name a repository that `push_to_hub` made.",
        )
