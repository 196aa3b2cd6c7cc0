"""Every option, its default and its checks; turned into sentences when a check fails. Imports no step."""

from specforge.config.load import load_config
from specforge.config.schema import Config

__all__ = ["Config", "load_config"]
