"""GRPO and DAPO on verl: the stream in, the ledger out, and everything between them verl's."""
