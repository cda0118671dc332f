"""What a model is worth: tasks become problems, the model answers each a number of times, verifiers say what is right."""
