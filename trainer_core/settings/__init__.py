"""Settings: sections, sources, and the front door `TrainingArguments`. Imports no torch."""
