"""Stand-in until the filesystem of fsspec lands here."""

__all__: list[str] = []
