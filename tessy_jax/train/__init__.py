"""Fine-tuning of the student on responses, provenance and all. Knows arrays and records, never decoding or synthesis."""
