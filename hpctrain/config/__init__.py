"""The config file: its classes (`schema`), its reader (`load`), its rules between fields (`check`), its docs (`reference`)."""
