"""Everything between a config and a job in the queue; it runs on login nodes, starts fast and never imports torch."""
