"""Chat templates that ship with the project, and where others are; reads no tokenizer."""

from pathlib import Path

CHAT_TEMPLATE_FILE = "chat_template.jinja"
"""In a model folder: the chat template, which counts before one in tokenizer_config.json."""
TEMPLATES = Path(__file__).parent / "templates"
"""Templates that ship with the project."""


def shipped_names() -> list[str]:
    """Names of the chat templates that ship with the project."""
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


def template_path(choice: str) -> Path:
    """Return the file that a value of `model.chat_template` names."""
    if choice in shipped_names():
        return TEMPLATES / f"{choice}.jinja"
    return Path(choice).expanduser()
