"""Programs that run inside a sandbox. Their text is sent to them: no file of theirs is mounted."""
