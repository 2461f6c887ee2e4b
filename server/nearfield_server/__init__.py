"""The service: the engine behind HTTP, and the ``nearfield`` command."""
