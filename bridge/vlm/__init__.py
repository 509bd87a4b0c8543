"""Pictures into answers: LLaVA's road, in parts that can be read and changed."""
