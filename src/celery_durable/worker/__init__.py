"""What runs in a worker's parent process: registry, lease keeper, sweeper, request."""
