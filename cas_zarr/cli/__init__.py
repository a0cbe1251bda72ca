"""The command `cas-zarr`. It is the only place where environment variables are read."""

__all__: list[str] = []
