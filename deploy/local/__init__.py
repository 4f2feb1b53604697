"""The embedded stack on one machine, for development and tests: ``python -m deploy.local run|status|test-servers``.

``servers.embedded_servers`` gives tests PostgreSQL and Valkey. ``services.SERVICES`` is the table of what runs. Nothing
is imported here, so that the supervisor and the mail sink stay small.
"""
