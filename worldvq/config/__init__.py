"""Types of a config, and strict YAML. Every part keeps its own section beside its code; worldvq.stages joins them."""
