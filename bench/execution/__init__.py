"""What distributes the work and caches it: plan, tasks, engines."""
