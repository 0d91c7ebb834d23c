"""The tree of configuration sections: which keys there are, at which path, in which section."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from envs.config import Section

Path = tuple[str, ...]
Sections = tuple[type[Section], ...]
"""The sections that may stand at one path: several where a discriminator chooses between them."""

ANY_NAME = "NAME"
"""Stands in a path for a name that the recipe chooses, as in `study.arms.NAME.title`."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration: its path, its field, and the section that it belongs to."""

    path: Path
    field: FieldInfo
    section: type[Section]

    @property
    def dotted(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True, slots=True)
class Place:
    """A section at a path; `choice` is the discriminator's value, as `name = "file"`, if any."""

    path: Path
    section: type[Section]
    choice: str = ""

    def own_keys(self) -> Iterator[Key]:
        """Yield the keys that the section itself has, without those of sections inside of it."""
        for name, field in self.section.model_fields.items():
            if not sections_in(field.annotation) and not named_sections(field.annotation):
                yield Key((*self.path, name), field, self.section)


def sections_in(annotation: object) -> Sections:
    """Return the sections that an annotation allows; none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    if get_origin(annotation) is Annotated:
        return sections_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(found for part in get_args(annotation) for found in sections_in(part))
    return ()


def named_sections(annotation: object) -> Sections:
    """Return the sections of a table whose keys are names of the recipe's own."""
    if get_origin(annotation) is not dict:
        return ()
    return sections_in(get_args(annotation)[1])


def keys_of(sections: Sections) -> list[str]:
    """Return the names of all keys that one of `sections` has."""
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def below(sections: Sections, key: str) -> Sections:
    """Return the sections that may stand at `key` of `sections`."""
    fields = [section.model_fields[key] for section in sections if key in section.model_fields]
    return tuple(dict.fromkeys(s for field in fields for s in sections_in(field.annotation)))


def annotation_of(sections: Sections, key: str) -> Any:
    """Return the annotation of `key` in the first section that has it, None if none has."""
    for section in sections:
        if key in section.model_fields:
            return section.model_fields[key].annotation
    return None


def places(section: type[Section], above: Path = (), choice: str = "") -> Iterator[Place]:
    """Yield `section` and every section inside of it, each with its path."""
    yield Place(above, section, choice)
    for name, field in section.model_fields.items():
        here = (*above, name)
        variants = sections_in(field.annotation)
        for variant in variants:
            chosen = choice_of(variant, field) if len(variants) > 1 else ""
            yield from places(variant, here, chosen)
        for inner in named_sections(field.annotation):
            yield from places(inner, (*here, ANY_NAME))


def choice_of(variant: type[Section], field: FieldInfo) -> str:
    """Return the value of the discriminator that selects `variant`, as `name = "file"`."""
    name = field.discriminator if isinstance(field.discriminator, str) else "name"
    values = discriminator_values(variant, name)
    return f"{name} = " + " or ".join(f'"{value}"' for value in values)


def discriminator_values(variant: type[Section], name: str) -> tuple[str, ...]:
    """Return the values of key `name` that belong to `variant`."""
    field = variant.model_fields.get(name)
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return tuple(str(value) for value in get_args(field.annotation))


def without_choices(
    path: Path, section: type[Section]
) -> tuple[Path, Mapping[Path, type[Section]]]:
    """Split what pydantic calls the place of a fault into a path and the chosen variants.

    Behind a key whose section depends on a discriminator, pydantic names the value of that
    discriminator; it is no part of the path.
    """
    sections: Sections = (section,)
    clean: list[str] = []
    chosen: dict[Path, type[Section]] = {}
    rest = list(path)
    while rest:
        part = rest.pop(0)
        clean.append(part)
        sections = below(sections, part)
        if len(sections) > 1 and rest:
            tag = rest.pop(0)
            found = [s for s in sections if any(tag in _literals(s, k) for k in s.model_fields)]
            sections = tuple(found[:1]) or sections
            if found:
                chosen[tuple(clean)] = found[0]
    return tuple(clean), chosen


def _literals(section: type[Section], key: str) -> tuple[str, ...]:
    return discriminator_values(section, key)
