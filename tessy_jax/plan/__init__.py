"""`tessy plan`: compiles the programs of a job for TPUs and GPUs that are not attached."""
