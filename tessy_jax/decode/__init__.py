"""Device programs that write text: caches, sampling, loops. They know arrays only."""
