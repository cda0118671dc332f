"""The errors a user can meet. Each says what was got, what would be right, and the remedy; the command line exits with 2."""


class TessyError(Exception):
    """Bad input, configuration or environment: something the user can mend."""


class ConfigError(TessyError, ValueError):
    """A configuration (ours or a model's config.json) that cannot be run."""


class CheckpointError(TessyError, OSError):
    """Model files that are missing, torn, or do not fit their configuration."""


class TokenizerError(TessyError, ValueError):
    """A tokenizer or chat template that cannot be read or used."""


class ShardingError(TessyError, ValueError):
    """A mesh that the devices or the model's dimensions do not allow."""


class DataError(TessyError, ValueError):
    """An input row that fits none of the accepted forms."""
