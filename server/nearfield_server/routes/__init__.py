"""The addresses of the service, one module per subject; ``ALL`` is every router in the order of trial."""

from __future__ import annotations

from nearfield_server.routes import collections, jobs, points, quality, query, rerankers, system

ALL = (query.router, points.router, collections.router, rerankers.router, jobs.router, quality.router, system.router)
