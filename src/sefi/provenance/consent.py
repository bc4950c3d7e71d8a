"""Who attests that a likeness may be made, of whom, for what and until when; one line of text in the identity."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from sefi.core.errors import ConfigError

SUBJECTS = {
    "self": "the person who attests",
    "permission": "another person, who has agreed",
    "pet": "an animal or a thing",
    "synthetic": "nobody: a drawn or generated face",
}
KEYS = ("by", "for", "scope", "date", "expires")
LONGEST_VALUE = 300  # characters
EXAMPLE = '--consent "by=Jane Doe; for=self; scope=private use; expires=2027-12-31"'
REMEDY = f"Write it as {EXAMPLE}; for= is one of {', '.join(SUBJECTS)}; date= and expires= may be left out."


@dataclass(frozen=True)
class Consent:
    """A statement by whoever learns a likeness; nobody checks that it is true.

    Attributes:
        by: who attests.
        subject: one of `SUBJECTS`; written `for`.
        scope: what the likeness may be used for.
        given: the day of the statement; written `date`.
        expires: the last day on which images may be generated; None is without end.

    Raises:
        ConfigError: a value is empty, too long, has a semicolon or a line break, or the days contradict each other.
    """

    by: str
    subject: str
    scope: str
    given: date
    expires: date | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be read back; errors as of the class."""
        for key, value in (("by", self.by), ("for", self.subject), ("scope", self.scope)):
            # What a line of `format` cannot hold, a terminal's control codes, and halves of characters.
            if value != value.strip() or not value.isprintable() or ";" in value:
                raise ConfigError(f"The consent's {key}= has a character that it cannot have.", REMEDY)
            if not 0 < len(value) <= LONGEST_VALUE:
                raise ConfigError(f"The consent's {key}= is empty or longer than {LONGEST_VALUE} characters.", REMEDY)
        if self.subject not in SUBJECTS:
            raise ConfigError(f"The consent's for={self.subject} is not known.", REMEDY)
        if self.expires is not None and self.expires < self.given:
            raise ConfigError("The consent expires before the day on which it was given.", REMEDY)

    def format(self) -> str:
        """Format it as the line that an identity holds and `parse_consent` reads."""
        line = f"by={self.by}; for={self.subject}; scope={self.scope}; date={self.given.isoformat()}"
        return line if self.expires is None else f"{line}; expires={self.expires.isoformat()}"


def parse_consent(text: str, today: date) -> Consent:
    """Return a consent as typed, `by=...; for=...; scope=...`, given today where it states no `date`.

    Raises:
        ConfigError: a part is missing, unknown, given twice or no date.
    """
    values: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        key, equals, value = (one.strip() for one in part.partition("="))
        if not equals or key not in KEYS or key in values:
            raise ConfigError(f"The consent has a part that is not known or stands twice: {part[:80]!r}.", REMEDY)
        values[key] = value
    missing = [f"{key}=" for key in ("by", "for", "scope") if not values.get(key)]
    if missing:
        raise ConfigError(f"The consent does not say {', '.join(missing)}.", REMEDY)
    expires = parse_date(values["expires"]) if "expires" in values else None
    # What has expired was given before.
    given = parse_date(values["date"]) if "date" in values else min(today, expires or today)
    return Consent(values["by"], values["for"], values["scope"], given, expires)


def parse_date(text: str) -> date:
    """Return a day written as 2027-12-31.

    Raises:
        ConfigError: it is none.
    """
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise ConfigError(f"{text[:40]!r} is no day.", REMEDY)


def require_consent(text: str | None, today: date) -> Consent:
    """Return the consent for learning a likeness on a model that can draw real people.

    Raises:
        ConfigError: none is stated, or it has expired.
    """
    if text is None:
        raise ConfigError("No consent to learning this likeness is given.", REMEDY)
    consent = parse_consent(text, today)
    if consent.expires is not None and consent.expires < today:
        raise ConfigError(f"The consent expired on {consent.expires}.", "Ask again, and state the new day.")
    if consent.given > today:
        raise ConfigError(
            f"The consent is dated in the future, {consent.given}.", "State the day on which it was given."
        )
    return consent


def check_consents(stated: Mapping[str, str | None]) -> None:
    """Refuse identities whose consent has expired by today, given what each states by its name; as `check_consent`."""
    for name, text in stated.items():
        check_consent(name, text, date.today())  # noqa: DTZ011 the day where the user is


def check_consent(name: str, text: str | None, today: date) -> None:
    """Refuse an identity whose consent has expired; statements in other words, and none at all, pass.

    Raises:
        ConfigError: the last day has passed.
    """
    try:
        consent = None if text is None else parse_consent(text, today)
    except ConfigError:
        return  # free text, as files had before
    if consent is not None and consent.expires is not None and consent.expires < today:
        raise ConfigError(
            f"The consent for {name!r} expired on {consent.expires}.",
            "Ask the person again and learn it anew, or add --expired-consent (Python: expired_consent=True).",
        )
