"""Errors for the user. A message gives the actual value, the expected one, and the remedy; the command line exits with 2."""


class TessyError(Exception):
    """Invalid input, configuration or environment, which the user can correct."""


class ConfigError(TessyError, ValueError):
    """A configuration (of this package, or a model's config.json) that cannot be run."""


class CheckpointError(TessyError, OSError):
    """Model files that are missing, damaged, or do not match their configuration."""


class TokenizerError(TessyError, ValueError):
    """A tokenizer or chat template that cannot be read or used."""


class ShardingError(TessyError, ValueError):
    """A mesh that does not fit the devices or the model's dimensions."""


class DataError(TessyError, ValueError):
    """Invalid input data, such as a row in none of the accepted forms."""
