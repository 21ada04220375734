"""Every error that pgolf raises on purpose.

::

    PGolfError
    ├── ConfigError          a model configuration that cannot be built
    ├── RecipeError          a recipe or an override that cannot be used
    ├── CorpusError          text, tokens, shards or a tokenizer that cannot be used
    ├── TrainingError        a run that must not go on (non-finite loss, a foreign checkpoint)
    ├── BudgetError          bytes or seconds over the limit
    ├── FormatError          a damaged or foreign artifact
    ├── LegalityError        a score that the rules of the game do not allow
    ├── HubError             a transfer that the Hub refused or that broke off
    └── EnvironmentMismatch  packages or files that are not the ones the run was made with

Messages say what was asked, what was found and what to do.
"""


class PGolfError(Exception):
    """The root: catch it to catch everything that pgolf raises on purpose."""


class ConfigError(PGolfError, ValueError):
    """A model configuration that cannot be built."""


class RecipeError(PGolfError, ValueError):
    """A recipe or an override that cannot be used."""


class CorpusError(PGolfError):
    """Text, tokens, shards or a tokenizer that cannot be used."""


class TrainingError(PGolfError):
    """A run that must not go on."""


class BudgetError(PGolfError):
    """Bytes or seconds over the limit."""


class FormatError(PGolfError, ValueError):
    """A damaged or foreign artifact."""


class LegalityError(PGolfError):
    """A score that the rules of the game do not allow."""


class HubError(PGolfError):
    """A transfer that the Hub refused or that broke off."""


class EnvironmentMismatch(PGolfError):
    """Packages or files that are not the ones the run was made with."""
