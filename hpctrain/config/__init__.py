"""The config file: `schema` (its classes), `load` (reader), `check` (rules between fields), `reference` (docs)."""
