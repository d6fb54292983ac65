"""Programs that run inside the sandbox, by path: they read a request and leave raw numbers."""
