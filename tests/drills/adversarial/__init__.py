"""What production and strangers do to a server beyond the drills of `labkit drills`."""
