"""Which purerun this is: said by the command line, and written into each checkpoint."""

__version__ = "0.1.0"
