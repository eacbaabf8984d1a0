"""How ranks work together: the protocol (`comm`), its implementations, and the choice between them (`connect`)."""
