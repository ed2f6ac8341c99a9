"""The one error tree. A message says what was found, where, what was expected and what to do."""


class TnavError(Exception):
    """Anything a user can mend. The command line prints its text and exits with 2."""


class ConfigError(TnavError):
    """A recipe or a record that does not say what it must; the text names file, line, field."""


class TileError(TnavError):
    """A DEM tile that is missing, damaged, in a wrong frame or without the data asked for."""


class ImageError(TnavError):
    """An image that cannot be read or that holds nothing to navigate by."""


class RunFileError(TnavError):
    """A run folder whose files are missing, damaged or of another schema."""


class DeviceError(TnavError):
    """A device that was asked for and that is not there."""
