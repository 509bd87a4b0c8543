"""The prompt dialects: each a parser into one tree, a rule of flattening, and a writer."""
